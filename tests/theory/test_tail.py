"""Claims about curves read from a pool and continued beyond it."""

import pytest
import torch
from torch import Tensor

from ridgescope.theory import (
    Samples,
    Spectrum,
    Target,
    compressed_power_law,
    pool_estimator,
    power_law,
    power_law_target,
    risks,
)
from ridgescope.theory.readings import PoolReadings, interpolate, pool_readings, ridge_grid
from ridgescope.theory.tail import PopulationCurve, population_curve

ALPHA, SOURCE, NOISE = 1.5, 0.3, 0.05


def population() -> tuple[Spectrum, Target]:
    return compressed_power_law(1e12, ALPHA, 2 * ALPHA * SOURCE + 1, noise=NOISE)


def exact_readings(size: int) -> PoolReadings:
    """What an infinitely lucky pool would read: the deterministic equivalent itself."""
    spectrum, target = population()
    ridges = torch.logspace(-7, 1, 65, dtype=torch.float64)
    at = risks(spectrum, target, Samples(size), ridges)
    scale = at.scale
    one = torch.ones_like(ridges)
    bias = at.bias2 + NOISE
    return PoolReadings(
        size, ridges, scale.kappa2, scale.df1, scale.df1 - scale.df2, bias, at.test, at.test, 0.01 * one, one
    )


def sampled_pool(size: int, seed: int, modes: int = 2000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spectrum, target = power_law(modes, ALPHA), power_law_target(modes, 2 * ALPHA * SOURCE + 1, noise=NOISE)
    phi = torch.randn(size, modes, generator=generator, dtype=torch.float64)
    noise = NOISE**0.5 * torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return (phi * spectrum.eta) @ phi.T, phi @ target.c2.sqrt()[:, None] + noise


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_power_law_is_continued_to_what_the_theory_says(ratio: int) -> None:
    curve = population_curve(exact_readings(500))
    ridges = torch.tensor([1e-2, 1e-4, 1e-6], dtype=torch.float64)
    truth = risks(*population(), Samples(500 * ratio), ridges)
    found = curve.forecast(500 * ratio, ridges)
    # this target has a floor, its noise: the upper tail. The decade it is fitted to is still bent by O(1/df1)
    torch.testing.assert_close(found.test * found.tail_error.exp(), truth.test, rtol=0.02, atol=0)
    torch.testing.assert_close(found.kappa, truth.scale.kappa2, rtol=0.05, atol=0)


def test_the_tail_has_the_exponents_of_the_spectrum_and_of_the_target() -> None:
    curve = population_curve(exact_readings(2000))
    assert curve.spectrum_exponent == pytest.approx(ALPHA, rel=0.02)
    # b ~ kappa^(2r) on top of the noise: exponent and floor share a misfit, so only their combination is sharp
    assert 0.2 < curve.bias_slope < 1.2


def test_where_the_pool_resolves_kappa_nothing_but_the_formula_is_used() -> None:
    curve = population_curve(exact_readings(500))
    found = curve.forecast(1e9, torch.tensor([1e-2], dtype=torch.float64))
    spectrum, target = population()
    assert float(found.beyond) < 0
    assert float(found.test) == pytest.approx(float(risks(spectrum, target, Samples(1e9), 1e-2).test), rel=2e-3)


@pytest.mark.parametrize("bend", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("size", [50, 200, 3200])
def test_ever_smaller_ridges_lead_to_the_limit_without_a_ridge(bend: float, size: int) -> None:
    # D_inf = 180 at the smallest kappa that is resolved, c = 0.1, w = 0.7 as of images: u goes on to thousands below it
    log_kappa = torch.linspace(-9, 0, 50, dtype=torch.float64)
    one = torch.ones_like(log_kappa)
    laws = 0.1 * one, 0.1 * bend * one, 0.7 * one, 0.7 * bend * one
    curve = PopulationCurve(log_kappa, 2 - log_kappa * 0.355, 0.1 * log_kappa, *laws, -0.355, 0.3, 0.2, 0.1)
    ridges = torch.logspace(-14, -1, 261, dtype=torch.float64)
    found = curve.forecast(size, ridges)
    for values in (found.kappa, found.share, found.test):
        assert bool(torch.isfinite(values).all())
    assert bool((found.kappa.diff() >= 0).all())
    assert bool((found.share.diff() <= 0).all())
    assert float(found.test.log().diff().abs().max()) < 0.1  # a twentieth of a decade of the ridge
    torch.testing.assert_close(found.test[0], curve.forecast(size, 0 * ridges[:1]).test[0], rtol=1e-6, atol=0)


def test_at_the_pool_size_it_returns_the_pools_own_left_out_risk() -> None:
    gram, y = sampled_pool(240, seed=1)
    pool = pool_estimator(gram, y)
    readings = pool_readings(pool, ridge_grid(pool))
    ridges = torch.tensor([3e-3, 1e-2, 1e-1], dtype=torch.float64)
    found = population_curve(readings).forecast(240, ridges).test
    # linear interpolation of logarithms between eight ridges a decade
    torch.testing.assert_close(found, torch.tensor([pool.risk(k) for k in ridges.tolist()]).double(), rtol=5e-3, atol=0)


def test_readings_agree_with_one_ridge_at_a_time() -> None:
    gram, y = sampled_pool(60, seed=2)
    pool = pool_estimator(gram, y)
    readings = pool_readings(pool, torch.tensor([1e-3, 1e-1], dtype=torch.float64))
    for i, k in enumerate((1e-3, 1e-1)):
        whole = pool.predict(60, k)
        assert float(readings.risk[i]) == pytest.approx(whole.test, rel=1e-10)
        assert float(readings.kappa[i]) == pytest.approx(whole.kappa2, rel=1e-10)
        assert float(readings.gcv[i]) == pytest.approx(pool.risk(k, "gcv"), rel=1e-10)
        assert float(readings.bias[i]) == pytest.approx(whole.bias, rel=1e-10)


def test_forecasts_of_gaussian_data_are_right_to_their_sampling_error() -> None:
    ridges = torch.tensor([1e-1, 1e-2, 1e-3], dtype=torch.float64)
    spectrum, target = power_law(2000, ALPHA), power_law_target(2000, 2 * ALPHA * SOURCE + 1, noise=NOISE)
    truth = risks(spectrum, target, Samples(1200), ridges).test
    errors = []
    for seed in range(8):
        pool = pool_estimator(*sampled_pool(300, seed=seed))
        readings = pool_readings(pool, ridge_grid(pool))
        errors.append((population_curve(readings).forecast(1200, ridges).test / truth).log())
    mean, error = torch.stack(errors).mean(0), torch.stack(errors).std(0) / 8**0.5
    # four standard errors of eight pools (t with 7 degrees of freedom: p = 0.005 each), and 2 % for 1/M
    assert bool((mean.abs() < 4 * error + 0.02).all()), (mean, error)


def test_a_kernel_of_finite_rank_gets_no_tail() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    pool = pool_estimator(x @ x.T, x[:, :1] + torch.randn(200, 1, generator=generator, dtype=torch.float64))
    curve = population_curve(pool_readings(pool, ridge_grid(pool)))
    far = curve.forecast(10000, torch.tensor([1e-9], dtype=torch.float64))
    # noise 1 and five parameters: E = 1/(1 - 5/10000), up to the noise that 200 points happen to have
    assert float(far.test) == pytest.approx(1.0, abs=4 * (2 / 200) ** 0.5)


def test_a_pool_that_resolves_nothing_is_named() -> None:
    readings = exact_readings(500)
    with pytest.raises(ValueError, match="a pool of 500 points resolves no part"):
        population_curve(PoolReadings(500, *(getattr(readings, n)[:3] for n in (
            "pool_ridge", "kappa", "df1", "d12", "bias", "risk", "gcv", "risk_se", "correct"))))  # fmt: skip


def test_interpolation_is_linear_inside_and_constant_outside() -> None:
    at = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    values = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    x = torch.tensor([-1.0, 0.5, 2.0, 9.0], dtype=torch.float64)
    assert interpolate(x, at, values).tolist() == [1.0, 1.5, 1.0, 0.0]
