"""The pool estimator: exact at P = M, unbiased on Gaussian data, refused where it would guess."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from ridgescope.theory import (
    Features,
    PoolEstimator,
    Samples,
    Spectrum,
    Target,
    kernel_ridge,
    pool_estimator,
    power_law,
    risks,
)

NOISE = 0.05


@pytest.fixture(scope="module")
def population() -> tuple:
    spectrum = power_law(1200, 1.4)
    c = torch.arange(1, 1201, dtype=torch.float64) ** -1.06
    return spectrum, c


@pytest.fixture
def pool(population: tuple, draw: Callable) -> tuple[PoolEstimator, torch.Tensor, torch.Tensor]:
    data = draw(*population, 400, NOISE, torch.Generator().manual_seed(0))
    return pool_estimator(data.gram, data.labels), data.gram, data.labels


def test_at_the_size_of_the_pool_it_is_the_pools_own_risk(pool: tuple) -> None:
    estimator, gram, labels = pool
    fit = kernel_ridge(gram, labels, 1e-3)
    assert estimator.predict(400, 1e-3).test == pytest.approx(fit.loo, rel=1e-10)
    assert estimator.predict(400, 1e-3, form="gcv").test == pytest.approx(fit.gcv, rel=1e-10)
    assert estimator.predict(400, 1e-3).train == pytest.approx(fit.train * fit.loo / fit.gcv, rel=1e-10)
    assert float(estimator.target_power.sum()) == pytest.approx(float(labels.square().mean()), rel=1e-12)


@pytest.mark.parametrize("width", [float("inf"), 150.0])
def test_it_satisfies_its_equations(pool: tuple, width: float) -> None:
    estimator = pool[0]
    for num_samples in (50, 200, 400):
        fit = estimator.predict(num_samples, 1e-3, width=width)
        k, m = fit.pool_ridge, 400
        assert float((estimator.eigenvalues / (estimator.eigenvalues + k)).sum()) == pytest.approx(fit.df1, rel=1e-12)
        assert fit.kappa2 == pytest.approx(k / (1 - fit.df1 / m), rel=1e-12)
        assert fit.kappa1 * (1 - fit.df1 / num_samples) == pytest.approx(1e-3, rel=1e-11)
        assert fit.train == pytest.approx((1e-3 / fit.kappa1) ** 2 * fit.test, rel=1e-11)
        assert 0 < fit.gamma2 <= fit.gamma1 < 1


@pytest.mark.slow
def test_it_predicts_the_population_where_the_naive_pool_fails(
    population: tuple, draw: Callable, assert_mean: Callable
) -> None:
    spectrum, c = population
    theory = risks(spectrum, Target(c.square(), NOISE), Samples(200), 1e-4)
    debiased, kappas, naive = [], [], []
    for seed in range(12):
        data = draw(spectrum, c, 400, NOISE, torch.Generator().manual_seed(seed))
        estimator = pool_estimator(data.gram, data.labels)
        fit = estimator.predict(200, 1e-4)
        debiased.append(fit.test)
        kappas.append(fit.kappa2)
        from_pool = Target(estimator.target_power)
        naive.append(float(risks(Spectrum(estimator.eigenvalues), from_pool, Samples(200), 1e-4).test))
    assert_mean(debiased, float(theory.test), 0.02)
    assert_mean(kappas, float(theory.scale.kappa2), 0.01)
    assert sum(naive) / 12 < 0.8 * float(theory.test)


def test_it_predicts_subsets_of_its_own_pool(pool: tuple, assert_mean: Callable) -> None:
    estimator, gram, labels = pool
    generator, measured = torch.Generator().manual_seed(1), []
    for _ in range(40):
        order = torch.randperm(400, generator=generator)
        train, rest = order[:150], order[150:]
        dual = kernel_ridge(gram[train][:, train], labels[train], 1e-3).dual
        measured.append(float((gram[rest][:, train] @ dual - labels[rest]).square().mean()))
    assert_mean(measured, estimator.predict(150, 1e-3).test, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "n"), [(150, 100), (150, 300)])
def test_it_predicts_random_features_on_subsets_of_the_pool(
    p: int, n: int, population: tuple, draw: Callable, assert_mean: Callable
) -> None:
    """Both forms agree on Gaussian data; ratios to the prediction, one for each of 8 pools."""
    m, ridge, naive = 500, 1e-3, []
    ratios: dict[Literal["gcv", "loo"], list[float]] = {"gcv": [], "loo": []}
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        data = draw(*population, m, NOISE, generator)
        estimator = pool_estimator(data.gram, data.labels)
        measured = 0.0
        for _ in range(20):
            order = torch.randperm(m, generator=generator)
            weights = torch.randn(data.features.shape[1], n, generator=generator, dtype=torch.float64)
            z, y = data.features[order] @ weights / n**0.5, data.labels[order]
            system = z[:p].T @ z[:p] + p * ridge * torch.eye(n, dtype=torch.float64)
            fit = torch.linalg.solve(system, z[:p].T @ y[:p])
            measured += float((z[p:] @ fit - y[p:]).square().mean()) / 20
        for form, ratio in ratios.items():
            ratio.append(measured / estimator.predict(p, ridge, width=n, form=form).test)
        from_pool = Spectrum(estimator.eigenvalues), Target(estimator.target_power)
        naive.append(measured / float(risks(*from_pool, Samples(p) @ Features(n), ridge).test))
    for ratio in ratios.values():
        assert_mean(ratio, 1.0, 0.03)  # 1/P corrections
    assert sum(naive) / 8 > 1.08


def test_bad_input_is_named_with_its_fix(pool: tuple) -> None:
    estimator, gram, labels = pool
    rank_one = pool_estimator(torch.ones(5, 5, dtype=torch.float64), labels[:5])
    hole = gram.clone()
    hole[0, 0] = torch.nan
    for call, message in (
        (lambda: estimator.predict(401, 1e-3), r"num_samples=401 must lie in \(0, 400\]"),
        (lambda: estimator.predict(100, -1.0), "ridge=-1"),
        (lambda: estimator.predict(100, 1e-3, width=-5.0), "width=-5 must be > 0; pass inf"),
        (lambda: estimator.predict(400, 0.0), "pool ridge 0.* below the rounding error"),
        (lambda: rank_one.predict(3, 0.0), "of a pool of rank 1"),
        (lambda: pool_estimator(gram[:3], labels[:3]), "square"),
        (lambda: pool_estimator(hole, labels), "1 entries that are nan"),
        (lambda: pool_estimator(-gram, labels), "trace"),
        (lambda: pool_estimator(gram.triu(), labels), "asymmetry"),
        (lambda: pool_estimator(gram, labels[:7]), "7 rows for 400"),
        (lambda: pool_estimator(gram, labels * torch.nan), "targets holds nan"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
