"""kappa itself: closed forms, the defining equation, symmetries and limits over 20 decades."""

import math

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ridgescope.theory import AdditiveNoise, Features, Pool, Samples, Spectrum, power_law, renormalise
from ridgescope.theory.solver import solve_kappa

RTOL = 1e-13  # the solver reaches a few units in the last place; 1e-13 leaves room for the oracle's own rounding
decades = st.floats(-17, 3).map(lambda x: 10.0**x)
spectra = st.lists(decades, min_size=2, max_size=30)
ridges = st.floats(-15, 3).map(lambda x: 10.0**x)
sizes = st.lists(st.floats(0.5, 60), min_size=1, max_size=4)


def kappa(eta: list[float], ridge: float, sizes: list[float]) -> float:
    column = torch.tensor(sizes, dtype=torch.float64)[:, None]
    tensor = torch.tensor(eta, dtype=torch.float64)
    return float(solve_kappa(tensor, None, tensor.new_zeros(()), tensor.new_tensor([ridge]), column))


def exact_kappa(eta: list[float], ridge: float, sizes: list[float]) -> mp.mpf:
    """Bisection at 50 digits on the defining equation, on the branch df1 < min(sizes)."""
    with mp.workdps(50):
        low, high = mp.mpf(10) ** -60, mp.mpf(10) ** 12
        while high / low - 1 > mp.mpf(10) ** -20:
            k = mp.sqrt(low * high)
            df1 = sum(mp.mpf(e) / (e + k) for e in eta)
            left = k
            for size in sizes:
                left *= 1 - df1 / mp.mpf(size)
            low, high = (k, high) if df1 >= min(sizes) or left < ridge else (low, k)
        return low


@pytest.mark.parametrize(("modes", "size", "ridge"), [(40, 30.0, 0.5), (40, 90.0, 1e-9), (1, 7.0, 3.0)])
def test_flat_spectrum_solves_a_quadratic(modes: int, size: float, ridge: float) -> None:
    b = 1 - modes / size - ridge  # kappa^2 + b kappa - ridge = 0
    root = math.sqrt(b * b + 4 * ridge)
    expected = 2 * ridge / (b + root) if b > 0 else (root - b) / 2
    assert kappa([1.0] * modes, ridge, [size]) == pytest.approx(expected, rel=RTOL)


@settings(max_examples=60, deadline=None)
@given(spectra, st.one_of(st.just(0.0), ridges), sizes)
def test_agrees_with_fifty_digits(eta: list[float], ridge: float, sizes: list[float]) -> None:
    if ridge == 0 and len(eta) <= min(sizes):
        assert kappa(eta, ridge, sizes) == 0
    else:
        assert kappa(eta, ridge, sizes) == pytest.approx(float(exact_kappa(eta, ridge, sizes)), rel=RTOL)


@settings(max_examples=60, deadline=None)
@given(spectra, ridges, sizes, st.floats(1e-3, 1e3))
def test_scales_with_the_kernel(eta: list[float], ridge: float, sizes: list[float], c: float) -> None:
    scaled = kappa([c * e for e in eta], c * ridge, sizes)
    # c * eta rounds, and kappa follows every eigenvalue with elasticity at most one
    assert scaled == pytest.approx(c * kappa(eta, ridge, sizes), rel=RTOL)


@settings(max_examples=60, deadline=None)
@given(spectra, ridges, sizes, st.floats(1.01, 10))
def test_grows_with_the_ridge_and_falls_with_every_size(
    eta: list[float], ridge: float, sizes: list[float], factor: float
) -> None:
    here = kappa(eta, ridge, sizes) * (1 - RTOL)
    assert here >= ridge * (1 - RTOL)
    assert kappa(eta, factor * ridge, sizes) >= here
    for i in range(len(sizes)):
        grown = [*sizes[:i], factor * sizes[i], *sizes[i + 1 :]]
        assert kappa(eta, ridge, grown) <= here * (1 + 3 * RTOL)


def test_infinite_sizes_leave_the_ridge_alone() -> None:
    assert kappa([1.0, 0.5], 0.3, [math.inf]) == 0.3
    assert kappa([1.0, 0.5, 0.2], 0.3, [2.0, math.inf]) == kappa([1.0, 0.5, 0.2], 0.3, [2.0])


def test_no_positive_mode_leaves_the_ridge_alone() -> None:
    assert kappa([0.0, 0.0], 0.3, [2.0]) == 0.3


def test_unsorted_multiplicities_equal_repeated_modes() -> None:
    blocks = Spectrum([0.1, 2.0], multiplicities=[3.0, 2.0])
    listed = Spectrum([2.0, 0.1, 2.0, 0.1, 0.1])
    a, b = (renormalise(s, Samples(3.0), 1e-3) for s in (blocks, listed))
    torch.testing.assert_close(a.kappa2, b.kappa2, rtol=RTOL, atol=0)
    torch.testing.assert_close(a.df2, b.df2, rtol=RTOL, atol=0)


def test_additive_noise_is_a_ridge_shared_among_the_samples() -> None:
    spectrum, trace = power_law(200, 1.4), 0.7
    noisy = renormalise(spectrum, Samples(50) @ AdditiveNoise(trace), 1e-2)
    shifted = renormalise(spectrum, Samples(50), 1e-2 + trace / 50)
    torch.testing.assert_close(noisy.kappa2, shifted.kappa2, rtol=RTOL, atol=0)
    many = Spectrum(torch.cat([spectrum.eta, torch.tensor([trace / 1e7])]), [1.0] * 200 + [1e7])
    block = renormalise(many, Samples(50), 1e-2)
    # the block's eigenvalue is not infinitesimal against kappa
    finite = 2 * trace / 1e7 / float(noisy.kappa2)
    torch.testing.assert_close(noisy.d12, block.d12, rtol=finite, atol=0)


def test_a_bulk_interpolates_without_listed_modes() -> None:
    # trace/kappa = P fixes kappa when nothing else is there
    fit = renormalise(Spectrum([0.0], bulk=3.0), Samples(6.0), 0.0)
    assert float(fit.kappa2) == pytest.approx(0.5, rel=RTOL)


def test_a_pool_undoes_the_sampling_of_its_own_spectrum() -> None:
    # Pool(M) with P -> M leaves kappa * (1 - df1/M): for P just below M the pool ridge is the ridge
    spectrum = power_law(300, 1.2)
    fit = renormalise(spectrum, Samples(99.999999) @ Pool(100.0), 1e-2)
    assert float(fit.kappa2) == pytest.approx(1e-2, rel=1e-6)
    chain = Samples(40.0) @ Features(70.0) @ Pool(100.0)
    fit = renormalise(spectrum, chain, 1e-2)
    left = fit.kappa2 / chain.s_transform(fit.df1)
    assert float(left) == pytest.approx(1e-2, rel=1e-12)  # 1 - df1/40 cancels a digit


def test_the_levels_are_the_ridge_after_each_source() -> None:
    fit = renormalise(power_law(300, 1.2), Samples(80) @ Features(120) @ Features(100), 1e-3)
    first, second, third = fit.levels
    assert float(fit.ridge / fit.spare_samples) == pytest.approx(float(first), rel=RTOL)
    assert float(first) == pytest.approx(float(fit.kappa1), rel=RTOL)
    assert float(third * fit.spare_features[1]) == pytest.approx(float(second), rel=RTOL)
    assert float(third) == float(fit.kappa2)
    assert float(fit.train_test_gap) == pytest.approx(float((fit.kappa1 / fit.ridge) ** 2), rel=RTOL)


def test_the_long_path_equals_the_short_one() -> None:
    # above 20 000 modes two rounded spectra give the bracket; the same modes in blocks take the short path
    torch.manual_seed(0)
    eta = torch.rand(500, dtype=torch.float64) ** 6
    listed = Spectrum(eta.repeat_interleave(60))
    with_counts = Spectrum(eta.repeat_interleave(50), [1.2] * 25_000)
    blocks = Spectrum(eta, [60.0] * 500)
    for ridge in (0.0, 1e-6, 1.0):
        expected = renormalise(blocks, Samples([90.0, 29_000.0][ridge == 1.0]) @ Features(2000), ridge).kappa2
        for spectrum in (listed, with_counts):
            found = renormalise(spectrum, Samples([90.0, 29_000.0][ridge == 1.0]) @ Features(2000), ridge).kappa2
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)  # sums of 30 000 terms


def test_gradients_follow_from_the_implicit_function() -> None:
    torch.manual_seed(1)
    eta = (torch.rand(9, dtype=torch.float64) ** 3).requires_grad_()
    counts = (1 + torch.rand(9, dtype=torch.float64)).requires_grad_()
    bulk = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    ridge = torch.tensor([0.05, 0.1], dtype=torch.float64, requires_grad=True)
    size = torch.tensor([[4.0, 5.0], [6.0, 3.0], [7.0, 20.0]], dtype=torch.float64, requires_grad=True)
    pool = torch.tensor([12.0, 13.0], dtype=torch.float64)

    def with_pool(eta: Tensor, counts: Tensor, bulk: Tensor, ridge: Tensor, size: Tensor) -> Tensor:
        return solve_kappa(eta, counts, bulk, ridge, size, pool)

    assert torch.autograd.gradcheck(solve_kappa, (eta, counts, bulk, ridge, size))
    assert torch.autograd.gradgradcheck(solve_kappa, (eta, counts, bulk, ridge, size))
    two = size[:2].detach().requires_grad_()
    assert torch.autograd.gradcheck(with_pool, (eta, counts, bulk, ridge, two))


def test_gradient_at_zero_ridge_is_the_slope_from_above() -> None:
    ridge = torch.zeros((), dtype=torch.float64, requires_grad=True)
    fit = renormalise(power_law(30, 1.5), Samples(100), ridge)
    (slope,) = torch.autograd.grad(fit.kappa2, ridge, retain_graph=True)
    assert float(slope) == pytest.approx(1 / (1 - 30 / 100), rel=RTOL)
    (slope,) = torch.autograd.grad(fit.df1, ridge)
    assert float(slope) == pytest.approx(-float((1 / power_law(30, 1.5).eta).sum()) / 0.7, rel=1e-12)


def test_names_the_offending_value_and_the_fix() -> None:
    spectrum = power_law(5, 1.5)
    for call, message in (
        (lambda: renormalise(spectrum, Samples(0), 0.1), "Samples must be > 0.*got 0"),
        (lambda: renormalise(spectrum, Samples(3), -1.0), "ridge must be finite and >= 0, got -1"),
        (lambda: renormalise(spectrum, Samples(3) @ Samples(4), 0.1), "2 Samples in one chain"),
        (lambda: renormalise(spectrum, Samples(3) @ Pool(2), 0.1), "Pool size 2 must exceed .* 3"),
        (lambda: renormalise(spectrum, Samples(3) @ Pool(9) @ Pool(9), 0.1), "2 pools"),
        (lambda: renormalise(spectrum, Samples(3) @ Features(4) @ Features(4) @ Pool(9), 0.1), "3 sizes"),
        (lambda: AdditiveNoise(-1.0), "trace of AdditiveNoise .* got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_s_transform_is_the_factor_between_levels() -> None:
    assert float(Samples(10).s_transform(5)) == 2
    assert float(Pool(10).s_transform(5)) == 0.5
    assert float(AdditiveNoise(3.0).s_transform(5)) == 1


def test_a_pool_has_no_gradient() -> None:
    pool = torch.tensor([9.0], dtype=torch.float64, requires_grad=True)
    eta = torch.ones(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="pool size has no gradient"):
        solve_kappa(eta, None, eta.new_zeros(()), eta[:1], 3 * eta[:1, None], pool)
