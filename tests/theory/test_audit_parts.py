"""The pool's own modes and error bar, control pools, and what a predictor acts like."""

import math
from collections.abc import Callable

import pytest
import torch

from ridgescope.theory import (
    Samples,
    acting_ridge,
    control_pool,
    independent_outputs,
    kappa_from_pool_modes,
    leading_modes,
    pool_estimator,
    pool_kappa_errors,
    power_law,
    renormalise,
    resolvent_estimate,
)


@pytest.fixture
def pool(draw: Callable):  # type: ignore[no-untyped-def]
    spectrum, c = power_law(300, 1.3), torch.arange(1, 301, dtype=torch.float64) ** -1.02
    data = draw(spectrum, c, 150, 0.05, torch.Generator().manual_seed(0))
    return pool_estimator(data.gram, data.labels), data.gram, data.labels


def test_pool_modes_recover_the_kappa_that_shrank_them(pool: tuple) -> None:
    """Without fluctuation: the modes of all points shrunk by exactly 1 - kappa/(e + k)."""
    estimator, _, labels = pool
    k = 3e-3
    kappa = k / float((k / (estimator.eigenvalues + k)).mean())
    shrink = 1 - kappa / (estimator.eigenvalues + k)
    predictions = estimator.vectors @ (shrink[:, None] * estimator.projections)
    found = kappa_from_pool_modes(
        predictions, labels, torch.arange(150), estimator,
        num_modes=leading_modes(estimator, kappa), num_samples=50, gamma=0.3, start=1e-2,
    )  # fmt: skip
    assert found.kappa == pytest.approx(kappa, rel=1e-8)
    assert found.low < kappa < found.high


def test_modes_that_the_target_hardly_has_bound_no_kappa(pool: tuple) -> None:
    """Their standard error is thousands of e-folds: no end of the interval is looked for where numbers overflow."""
    estimator, gram, labels = pool
    hidden = estimator.vectors[:, -40:].sum(1, keepdim=True) + 1e-5 * labels
    estimator = pool_estimator(gram, hidden)
    found = kappa_from_pool_modes(
        0.5 * hidden, hidden, torch.arange(150), estimator, num_modes=20, num_samples=50, gamma=0.3, start=1e-2
    )
    assert found.se_log > 1000
    assert (found.low, found.high) == (0, math.inf)


@pytest.mark.slow
def test_the_pools_kappa_and_its_difference_to_the_resolvents_have_z_scores_of_spread_one(
    draw: Callable, spread: Callable
) -> None:
    # 200 pools: the spread is known to 5 %, the mean to 0.07. The third variance is a difference of two
    spectrum, c = power_law(500, 1.3), torch.ones(500, dtype=torch.float64)
    p, m, ridge, generator = 70, 200, 1e-3, torch.Generator().manual_seed(1)
    kappa = float(renormalise(spectrum, Samples(p), ridge).kappa2)
    pool_z, own_z, difference = [], [], []
    for _ in range(200):
        data = draw(spectrum, c, m, 0.0, generator)
        estimator = pool_estimator(data.gram, data.labels)
        prediction = estimator.predict(p, ridge)
        se, bias = pool_kappa_errors(estimator, prediction, p)
        own = resolvent_estimate(torch.linalg.eigvalsh(data.gram[:p, :p] / p), ridge=ridge)
        logs = math.log(prediction.kappa2 / kappa) - bias, math.log(own.kappa_corrected / kappa)
        pool_z.append(logs[0] / se)
        own_z.append(logs[1] / own.se_log)
        difference.append((logs[1] - logs[0]) / math.sqrt(own.se_log**2 - se**2))
    for scores in (pool_z, own_z, difference):
        assert 0.9 < spread(scores) < 1.1
        assert abs(sum(scores) / 200) < 0.25


@pytest.mark.slow
def test_kappa_by_the_pools_modes_has_an_honest_error(spread: Callable) -> None:
    """240 pools: the spread is known to 5 %, the mean to 0.07."""
    outputs = 4
    spectrum, p, m, ridge, generator = power_law(400, 1.3), 60, 200, 1e-2, torch.Generator().manual_seed(3)
    c = torch.arange(1, 401, dtype=torch.float64)[:, None] ** torch.linspace(-1.1, -0.9, outputs, dtype=torch.float64)
    c = c * torch.randn(400, outputs, generator=generator, dtype=torch.float64).sign()
    kappa = float(renormalise(spectrum, Samples(p), ridge).kappa2)
    scores = []
    for _ in range(240):
        phi = torch.randn(m, 400, generator=generator, dtype=torch.float64)
        gram = (phi * spectrum.eta) @ phi.T
        labels = phi @ c + 0.3 * torch.randn(m, outputs, generator=generator, dtype=torch.float64)
        pool = pool_estimator(gram, labels)
        inner = gram[:p, :p] + p * ridge * torch.eye(p, dtype=torch.float64)
        predictions = gram[p:, :p] @ torch.linalg.solve(inner, labels[:p])
        found = kappa_from_pool_modes(
            predictions, labels[p:], torch.arange(p, m), pool, num_modes=leading_modes(pool, kappa), num_samples=p,
            gamma=resolvent_estimate(torch.linalg.eigvalsh(gram[:p, :p] / p), ridge=ridge).gamma, start=kappa,
        )  # fmt: skip
        scores.append(math.log(found.kappa / kappa) / found.se_log)
    assert 0.9 < spread(scores) < 1.1
    assert abs(sum(scores) / 240) < 0.25


def test_controls_keep_spectrum_targets_and_norms(pool: tuple) -> None:
    estimator, gram, _ = pool
    generator = torch.Generator().manual_seed(0)
    traces, powers = [], []
    for _ in range(50):
        control, targets = control_pool(estimator, generator)
        traces.append(float(control.diagonal().mean()))
        powers.append(float(targets.square().mean()))
    # means over 50 x 150 points, whose norms vary by about one
    assert sum(traces) / 50 == pytest.approx(float(estimator.eigenvalues.sum()), rel=0.05)
    assert sum(powers) / 50 == pytest.approx(float(estimator.target_power.sum()), rel=0.1)
    norms = torch.linspace(0.1, 1.9, 150, dtype=torch.float64) * 3  # mean squared norms in units of three
    one, other = (control_pool(estimator, torch.Generator().manual_seed(1), v)[0] for v in (None, norms))
    torch.testing.assert_close(other.diagonal() / one.diagonal(), norms / 3, rtol=1e-12, atol=0.0)
    with pytest.raises(ValueError, match="of the 150 points"):
        control_pool(estimator, generator, gram.diagonal()[:9])


def test_a_predictor_acts_like_what_made_it() -> None:
    s, y = power_law(80, 1.2).eta, torch.ones(80, 2, dtype=torch.float64)
    ridge = acting_ridge(s, y, (s / (s + 2e-3))[:, None] * y, ridge=1e-3, num_samples=80)
    assert (ridge.reading, ridge.ridge) == ("ridge", pytest.approx(2e-3, rel=1e-3))
    flow = acting_ridge(s, y, -torch.expm1(-30 * s)[:, None] * y, ridge=1e-3, num_samples=80)
    assert (flow.reading, flow.time) == ("flow", pytest.approx(30, rel=1e-3))
    told = acting_ridge(s, y, (s / (s + 1e-3))[:, None] * y, ridge=1e-3, num_samples=80)
    assert (told.reading, told.noise) == ("told", pytest.approx(0.0, abs=1e-20))
    noise = torch.randn(80, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = acting_ridge(s, y, (s / (s + 1e-3))[:, None] * (y + noise), ridge=1e-3, num_samples=80)
    assert other.reading == "labels"
    assert other.noise == pytest.approx(2.0, rel=0.4)  # 160 squares of variance one
    for call, message in (
        (lambda: acting_ridge(s, y, y, ridge=0.0, num_samples=80), "ridge=0"),
        (lambda: acting_ridge(s, y * 0, y, ridge=1e-3, num_samples=80), "labels are all zero"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_outputs_that_repeat_count_once() -> None:
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert independent_outputs(x) == pytest.approx(3.0, rel=0.01)
    assert independent_outputs(x[:, :1].repeat(1, 3)) == pytest.approx(1.0, rel=1e-12)
