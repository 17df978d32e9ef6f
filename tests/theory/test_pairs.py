"""Claims about leaving out two points, and the law of n points at fixed kappa that is read from it."""

import math

import pytest
import torch
from torch import Tensor

from ridgescope.theory import pool_estimator, power_law
from ridgescope.theory.pairs import pair_readings
from ridgescope.theory.readings import interpolate, pool_readings, ridge_grid
from ridgescope.theory.tail import PopulationCurve, population_curve

NOISE = 0.1


def regression(size: int, seed: int, *, unevenness: float, modes: int = 1500) -> tuple[Tensor, Tensor]:
    """Features and noisy targets of points x = r z, mean r^2 = 1; r is log-normal, and multiplies the signal too."""
    generator = torch.Generator().manual_seed(seed)
    eta = power_law(modes, 1.5).eta
    z = torch.randn(size, modes, generator=generator, dtype=torch.float64)
    log_r = unevenness * torch.randn(size, 1, generator=generator, dtype=torch.float64)
    phi = z * (log_r - unevenness**2).exp()
    noise = NOISE**0.5 * torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return phi * eta.sqrt(), (phi * eta**0.7).sum(1, keepdim=True) + noise


@pytest.mark.parametrize("outputs", [1, 3])
def test_slopes_and_jackknife_are_those_of_pools_with_one_point_deleted(outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 40, generator=generator, dtype=torch.float64) * torch.arange(1, 41) ** -0.7
    y = torch.randn(24, outputs, generator=generator, dtype=torch.float64)
    gram, ridges = x @ x.T, torch.tensor([1e-3, 1e-1, 10.0], dtype=torch.float64)
    found, whole = pair_readings(pool_estimator(gram, y), ridges), pool_readings(pool_estimator(gram, y), ridges)
    inverse_kappa, risk = [], []
    for j in range(24):
        kept = [i for i in range(24) if i != j]
        rest = pool_readings(pool_estimator(gram[kept][:, kept], y[kept]), ridges * 24 / 23)  # the same M k
        inverse_kappa.append(1 / rest.kappa)
        risk.append(rest.risk)
    kappa, risks = 1 / torch.stack(inverse_kappa).mean(0), torch.stack(risk)
    torch.testing.assert_close(found.kappa_slope, 24 * (whole.kappa / kappa).log(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.risk_slope, 24 * (whole.risk / risks.mean(0)).log(), rtol=1e-8, atol=1e-9)
    error = 23 * risks.std(0) / 24**0.5 / whole.risk
    torch.testing.assert_close(found.risk_se, error, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("outputs", "classes"), [(1, True), (2, True), (3, True), (1, False), (2, False), (3, False)])
def test_only_targets_that_are_classes_have_an_accuracy(outputs: int, classes: bool) -> None:
    features, values = regression(60, 0, unevenness=0.0, modes=30)
    real = torch.cat([values, features[:, : outputs - 1]], dim=1)
    one_hot = torch.nn.functional.one_hot(real.argmax(1), max(2, outputs)).double() - 1 / max(2, outputs)
    y = (real if not classes else real.sign()) if outputs == 1 else (one_hot if classes else real)
    pool = pool_estimator(features @ features.T, y)
    correct = pool_readings(pool, ridge_grid(pool)).correct
    assert bool(correct.isfinite().all()) is classes
    assert bool(correct.isnan().all()) is not classes
    if classes:
        assert float(correct.max()) > 0.6


def test_gaussian_points_obey_the_gaussian_law() -> None:
    shares = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    excess, ratio = [], []
    for seed in range(6):
        x, y = regression(300, seed, unevenness=0.0)
        pool = pool_estimator(x @ x.T, y)
        readings = pool_readings(pool, ridge_grid(pool))
        measured = population_curve(readings, pair_readings(pool, readings.pool_ridge[8:70:4]))
        gaussian = population_curve(readings)
        at = interpolate(shares, readings.share.flip(0), readings.kappa.log().flip(0))
        excess.append(interpolate(at, measured.log_kappa, measured.excess))
        w, df2 = (interpolate(at, c.log_kappa, c.spread * c.log_df1.exp()) for c in (measured, gaussian))
        ratio.append((w / df2).log())
    # w of one pool scatters by 10 to 20 %, as its left-out risks do
    mean, error = torch.stack(ratio).mean(0), torch.stack(ratio).std(0) / 6**0.5
    assert bool((mean.abs() < 4 * error + 0.02).all()), (mean, error)
    assert float(torch.stack(excess).mean(0).max()) < 0.05


def test_uneven_points_break_the_gaussian_law_and_obey_the_measured_one() -> None:
    size, ratio, ridge = 150, 4, torch.tensor([1e-2], dtype=torch.float64)
    falls, truths = [], []  # of log risk from M to 4 M points, in which most of a pool's luck drops out
    for seed in range(16):
        x, y = regression(size * (1 + ratio) + 3000, seed, unevenness=0.8, modes=800)
        pool = pool_estimator(x[:size] @ x[:size].T, y[:size])
        readings = pool_readings(pool, ridge_grid(pool))
        pairs = pair_readings(pool, readings.pool_ridge[8:70:4])
        falls.append([fall(population_curve(*given), size, ratio, ridge) for given in ((readings, pairs), (readings,))])
        small = sum(fresh_risk(x, y, size * (1 + i), size, float(ridge)) for i in range(ratio)) / ratio
        truths.append(math.log(fresh_risk(x, y, size, size * ratio, float(ridge)) / small))
    measured, gaussian = torch.tensor(falls, dtype=torch.float64).mean(0).tolist()
    truth = sum(truths) / 16
    # truth -0.170 +- 0.007, measured -0.161 +- 0.016, Gaussian -0.092 +- 0.003
    assert abs(measured - truth) < 3 * 0.017
    assert gaussian - truth > 0.05


def fall(curve: PopulationCurve, size: int, ratio: int, ridge: Tensor) -> float:
    return float((curve.forecast(size * ratio, ridge).test / curve.forecast(size, ridge).test).log())


def fresh_risk(x: Tensor, y: Tensor, first: int, size: int, ridge: float) -> float:
    """Of ``size`` points from ``first`` on, tested on the last 3000."""
    mine, shift = slice(first, first + size), size * ridge * torch.eye(size, dtype=torch.float64)
    weights = x[mine].T @ torch.linalg.solve(shift + x[mine] @ x[mine].T, y[mine])
    return float((x[-3000:] @ weights - y[-3000:]).square().mean())
