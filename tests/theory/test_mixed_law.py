"""The law averaged over draws of what its blocks depend on: one draw, and the mean of several."""

import pytest
import torch

from ridgescope.theory.blocks import (
    LinkedFamily,
    LinkedKernel,
    MixedKernel,
    SampledFamily,
    SampledKernel,
    mixed_law,
    sampled_law,
)

P, T, RANK, WIDTH = 24, 7, 5, 6


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr("ridgescope.theory.blocks.mixture.TOLERANCE", 1e-7)


@pytest.fixture
def kernels(generator):
    blocks = torch.randn(3, 6, RANK, 1, P + T, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(1, 1, 1, P + T, dtype=torch.float64)
    none = LinkedFamily(nothing, nothing[:, :, None, None])
    return [LinkedKernel(P, none, [SampledFamily(one[..., :P], one[..., P:])]) for one in blocks]


def sampled(kernel):
    return SampledKernel(kernel.families)


@pytest.fixture
def targets(generator):
    return torch.randn(P + T, 2, generator=generator, dtype=torch.float64).split([P, T])


def test_one_draw_is_the_sampled_law(kernels, targets):
    law = mixed_law(MixedKernel(kernels[:1], sampled(kernels[0]).limit(), WIDTH), *targets, ridge=1e-2)
    expected = sampled_law(sampled(kernels[0]), *targets, width=WIDTH, ridge=1e-2)
    for name in ("kappa1", "kappa_features", "dkappa1_dridge", "gamma1", "test", "test_variance", "train", "loo"):
        torch.testing.assert_close(getattr(law, name), getattr(expected, name), rtol=1e-5, atol=0, msg=name)


def test_draws_are_averaged_and_the_risk_is_split_at_their_common_mean(kernels, targets):
    weights = torch.rand(P, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    y, z = targets
    law = mixed_law(MixedKernel(kernels, sampled(kernels[0]).limit(), WIDTH), y, z, ridge=1e-2, weights=weights)
    each = [sampled_law(sampled(k), y, z, width=WIDTH, ridge=1e-2, weights=weights) for k in kernels]

    def mean(name):
        return torch.stack([getattr(one, name) for one in each]).mean(0)

    for name in ("test", "train", "predictor", "test_points"):
        torch.testing.assert_close(getattr(law, name), mean(name), rtol=1e-5, atol=1e-8, msg=name)
    torch.testing.assert_close(1 / law.kappa1, torch.stack([1 / one.kappa1 for one in each]).mean(), rtol=1e-5, atol=0)
    bias = (z - mean("predictor")).square().sum(1).mean()
    torch.testing.assert_close(law.test_bias, bias, rtol=1e-5, atol=0)
    assert float(law.test_variance) > float(mean("test_variance"))
    again = mixed_law(
        MixedKernel(kernels, sampled(kernels[0]).limit(), WIDTH),
        y,
        z,
        ridge=1e-2,
        weights=weights,
        start=law.orders[:2],
    )
    torch.testing.assert_close(again.test, law.test, rtol=1e-5, atol=0)


def test_dkappa_dridge_is_the_difference_quotient(kernels, targets):
    mixture, ridge, step = MixedKernel(kernels, sampled(kernels[0]).limit(), WIDTH), 1e-2, 1e-3
    low, high = (float(mixed_law(mixture, targets[0], ridge=ridge + s).kappa1) for s in (-step, step))
    law = mixed_law(mixture, targets[0], ridge=ridge)
    assert float(law.dkappa1_dridge) == pytest.approx((high - low) / (2 * step), rel=1e-2)


def test_a_mixture_of_nothing_is_named(kernels, targets):
    with pytest.raises(ValueError, match="needs at least one draw of the lower layer"):
        mixed_law(MixedKernel([], sampled(kernels[0]).limit(), WIDTH), *targets, ridge=1e-2)
