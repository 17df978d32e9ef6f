"""kappa by left-out variance: equal to the resolvent's where points are alike, right where they are not."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import brentq

from ridgescope.theory import (
    Samples,
    Target,
    left_out_estimate,
    left_out_risk,
    pool_estimator,
    power_law,
    resolvent_estimate,
    risks,
    uneven_kappa,
)


def resolvent_diagonal(gram: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(gram / len(gram))
    return values, vectors.square() @ (1 / (values + ridge))


def test_equal_points_have_one_kappa() -> None:
    diagonal = torch.full((50,), 20.0, dtype=torch.float64)
    estimate = left_out_estimate(diagonal, ridge=1e-2, gamma=0.0)
    assert estimate.kappa == pytest.approx(1 / 20, rel=1e-14)
    assert (estimate.unevenness, estimate.repeated) == (0.0, 0)


def test_it_is_the_mean_variance_that_leaving_out_gives(draw: Callable) -> None:
    """P mean(u)/df1 with u from the Gaussian process on the other points, one inverse for each."""
    spectrum, p, ridge = power_law(60, 1.2), 30, 1e-2
    c = torch.ones(60, dtype=torch.float64)
    gram = draw(spectrum, c, p, 0.0, torch.Generator().manual_seed(0)).gram
    variances = []
    for i in range(p):
        keep = torch.arange(p) != i
        inner = gram[keep][:, keep] + p * ridge * torch.eye(p - 1, dtype=torch.float64)
        variances.append(float(gram[i, i] - gram[i, keep] @ torch.linalg.solve(inner, gram[keep, i])) / p)
    values, diagonal = resolvent_diagonal(gram, ridge)
    known = resolvent_estimate(values, ridge=ridge)
    estimate = left_out_estimate(diagonal, ridge=ridge, gamma=known.gamma)
    plain = estimate.kappa * math.exp(math.log1p(estimate.gaussian**2 * known.df1 / p))  # without the correction
    assert plain == pytest.approx(sum(variances) / known.df1, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("p", "ridge", "draws"), [(150, 1e-2, 400), (100, 1e-3, 400)])
def test_z_scores_on_gaussian_points_have_spread_one(
    p: int, ridge: float, draws: int, draw: Callable, spread: Callable
) -> None:
    from ridgescope.theory import Samples, renormalise

    spectrum, generator = power_law(300, 1.3), torch.Generator().manual_seed(5)
    c = torch.ones(300, dtype=torch.float64)
    kappa = float(renormalise(spectrum, Samples(p), ridge).kappa2)
    z, excess = [], []
    for _ in range(draws):
        values, diagonal = resolvent_diagonal(draw(spectrum, c, p, 0.0, generator).gram, ridge)
        known = resolvent_estimate(values, ridge=ridge)
        one = left_out_estimate(diagonal, ridge=ridge, gamma=known.gamma, kappa=known.kappa_corrected)
        z.append(math.log(one.kappa / kappa) / math.hypot(known.se_log, one.excess_se))
        excess.append(one.excess_log / one.excess_se)
    for scores in (z, excess):  # 400 draws give the spread to 3.5 % and the mean to 0.05
        assert 0.9 < spread(scores) < 1.1
        assert abs(sum(scores) / draws) < 0.2


def test_points_of_unequal_size_keep_the_kappa_of_the_modes() -> None:
    """Elliptical points: both numbers of the module's head, from their equations, against one large draw."""
    p, ridge, eta = 600, 1e-3, power_law(900, 1.3).eta
    generator = torch.Generator().manual_seed(0)
    scale = torch.where(torch.arange(p) % 2 == 0, 0.4, 1.6).double()  # r^2, mean one

    def excess(log_kappa: float) -> float:
        kappa = math.exp(log_kappa)
        width = kappa * float((eta / (eta + kappa)).sum()) / p
        return 1 / kappa - float((scale / (ridge + scale * width)).mean())

    kappa = math.exp(brentq(excess, -12, 3))
    width = kappa * float((eta / (eta + kappa)).sum()) / p
    resolvent = 1 / float((1 / (ridge + scale * width)).mean())
    x = torch.randn(p, 900, generator=generator, dtype=torch.float64) * eta.sqrt() * scale.sqrt()[:, None]
    values, diagonal = resolvent_diagonal(x @ x.T, ridge)
    known = resolvent_estimate(values, ridge=ridge)
    estimate = left_out_estimate(diagonal, ridge=ridge, gamma=known.gamma)
    assert resolvent < 0.85 * kappa
    assert known.kappa == pytest.approx(resolvent, rel=0.015)  # one draw: 1/P and 3 standard errors of 0.4 %
    assert estimate.kappa == pytest.approx(kappa, rel=0.015)
    assert estimate.unevenness == pytest.approx(0.6, rel=0.1)  # the coefficient of variation of r^2


def test_a_pool_of_unequal_points_predicts_both_kappas() -> None:
    """Elliptical points again: 600 predict training sets of 200 of them, where the formula of even points is wrong."""
    ridge, eta, generator = 1e-3, power_law(900, 1.3).eta, torch.Generator().manual_seed(3)
    scale = torch.where(torch.arange(600) % 2 == 0, 0.3, 1.7).double()
    x = torch.randn(600, 900, generator=generator, dtype=torch.float64) * eta.sqrt() * scale.sqrt()[:, None]
    gram = x @ x.T
    pool = pool_estimator(gram, x[:, :1])
    predicted = uneven_kappa(pool, num_samples=200, ridge=ridge)
    even = pool.predict(200, ridge).kappa2
    measured = []
    for _ in range(8):
        train = torch.randperm(600, generator=generator)[:200]
        values, diagonal = resolvent_diagonal(gram[train][:, train], ridge)
        known = resolvent_estimate(values, ridge=ridge)
        measured.append((known.kappa, left_out_estimate(diagonal, ridge=ridge, gamma=known.gamma).kappa))
    resolvent, modes = (sum(column) / 8 for column in zip(*measured, strict=True))
    assert resolvent < 0.9 * even
    assert predicted.resolvent == pytest.approx(resolvent, rel=0.03)  # 8 draws of the scales: 3 standard errors of 1 %
    assert predicted.modes == pytest.approx(modes, rel=0.03)


def test_bad_input_is_named_with_its_fix() -> None:
    r = torch.ones(5, dtype=torch.float64)
    for call, message in (
        (lambda: left_out_estimate(r * 0, ridge=0.1, gamma=0.1), "diagonal must be > 0"),
        (lambda: left_out_estimate(r, ridge=-1.0, gamma=0.1), "ridge=-1"),
        (lambda: left_out_estimate(r, ridge=0.1, gamma=1.0), "gamma=1"),
        (lambda: left_out_estimate(r, ridge=1.0, gamma=0.1), "no degrees of freedom"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_leave_one_out_risk_is_that_of_refitting(draw: Callable) -> None:
    spectrum, p, ridge = power_law(60, 1.2), 30, 1e-2
    data = draw(spectrum, torch.ones(60, dtype=torch.float64), p, 0.1, torch.Generator().manual_seed(0))
    errors = []
    for i in range(p):
        keep = torch.arange(p) != i
        inner = data.gram[keep][:, keep] + p * ridge * torch.eye(p - 1, dtype=torch.float64)
        errors.append(data.labels[i] - data.gram[i, keep] @ torch.linalg.solve(inner, data.labels[keep]))
    inverse = torch.linalg.inv(data.gram / p + ridge * torch.eye(p, dtype=torch.float64))
    found = left_out_risk(inverse @ data.labels, inverse.diagonal(), kappa=1 / float(inverse.diagonal().mean()))
    assert found.risk == pytest.approx(float(torch.stack(errors).square().mean()), rel=1e-10)
    train = ridge**2 * float((inverse @ data.labels).square().mean())
    assert found.kappa == pytest.approx(ridge * math.sqrt(found.risk / train), rel=1e-12)


def test_leave_one_out_over_training_risk_exceeds_kappa_by_what_one_sample_teaches(
    draw: Callable, assert_mean: Callable
) -> None:
    """log kappa without ``shorter`` is off by log E_test(P - 1)/E_test(P): 1.4 %, known to 0.06 %."""
    p, ridge, spectrum, generator = 40, 1e-1, power_law(200, 1.3), torch.Generator().manual_seed(2)
    c = torch.arange(1, 201, dtype=torch.float64) ** -1.02
    theory, shorter = (risks(spectrum, Target(c.square(), 0.1), Samples(n), ridge * p / n) for n in (p, p - 1))
    found = []
    for _ in range(1000):
        data = draw(spectrum, c, p, 0.1, generator)
        values, vectors = torch.linalg.eigh(data.gram / p)
        inverse = (vectors / (values + ridge)) @ vectors.T
        known = resolvent_estimate(values.clamp_min(0), ridge=ridge)
        one = left_out_risk(inverse @ data.labels, inverse.diagonal(), kappa=known.kappa_corrected)
        found.append(math.log(one.kappa / float(theory.scale.kappa2)))
    assert_mean(found, math.log(float(shorter.test / theory.test)), 0.0)
