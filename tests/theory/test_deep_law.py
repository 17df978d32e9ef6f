"""The deep law against one hidden layer, deep linear features, infinite width and its own finite differences."""

import math
from functools import reduce
from operator import matmul

import pytest
import torch

from ridgescope.theory import Features, Samples, Spectrum, Target, kernel_ridge, renormalise, risks
from ridgescope.theory.blocks import (
    BlockKernel,
    DeepKernel,
    HiddenLayer,
    Scales,
    activation_family,
    block_law,
    deep_law,
    fixed_scale,
    gradient_family,
    point_kernel,
    squared_readout,
)

SPREAD = Scales(torch.tensor([0.4, 1.6], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64))


def arc_cosine(gram):
    """Moments of sqrt(2) relu(z) and of its slope (Cho and Saul 2009)."""
    norm = gram.diagonal().sqrt()
    cosine = (gram / norm[:, None] / norm).clamp(-1, 1)
    cosine.fill_diagonal_(1)
    angle = cosine.acos()
    value = (angle.sin() + (math.pi - angle) * cosine) / math.pi
    return value * norm[:, None] * norm, (math.pi - angle) / math.pi


def relu_kernel(generator, depth, p, t, bias=0.0):
    x = torch.randn(p + t, 8, generator=generator, dtype=torch.float64)
    inputs = x @ x.T / 8
    layers, covariance = [], inputs
    for _ in range(depth):
        value, gate = arc_cosine(covariance)
        layers.append(HiddenLayer(value, gate, 1.0, bias, 0.2, SPREAD, squared_readout()))
        covariance = value
    return DeepKernel(inputs, layers, p)


def targets(generator, n, outputs=1):
    return torch.randn(n, outputs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("width", [9.0, 40.0, 1e4])
def test_one_hidden_layer_is_the_block_law(generator, width):
    p, t = 25, 90  # more evaluation points than one piece holds
    deep = relu_kernel(generator, 1, p, t, bias=0.1)
    y, z = targets(generator, p, 2), targets(generator, t, 2)
    (layer,) = deep.layers
    deep = DeepKernel(deep.inputs, [HiddenLayer(layer.value, layer.gate, 1.0, 0.1, 0.0, fixed_scale(), SPREAD)], p)
    families = [
        activation_family(point_kernel(layer.value, p)),
        gradient_family(point_kernel(layer.gate, p), point_kernel(deep.inputs, p), SPREAD),
    ]
    fixed = point_kernel(torch.full((p + t, p + t), 0.1, dtype=torch.float64), p)
    weights = torch.rand(p, generator=generator, dtype=torch.float64) + 0.5
    expected = block_law(BlockKernel(families, fixed), y, z, width=width, ridge=1e-3, weights=weights)
    law = deep_law(deep, y, z, width=width, ridge=1e-3, weights=weights)
    names = ("kappa1", "kappa_features", "dkappa1_dridge", "gamma1", "test", "test_variance", "train", "loo", "gcv")
    for name in names:  # ten times the adjoint's tolerance
        torch.testing.assert_close(getattr(law, name), getattr(expected, name), rtol=1e-8, atol=0, msg=name)
    torch.testing.assert_close(law.kappa1, expected.kappa1, rtol=1e-10, atol=0)
    torch.testing.assert_close(law.predictor, expected.predictor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_linear_activations_with_a_trained_readout_are_deep_linear_features(generator, depth):
    """Then every layer's noise is a random matrix: section 5's product of widths, kappa and risk."""
    n, width, ridge = 24, 40.0, 1e-2
    x = torch.randn(n, n, generator=generator, dtype=torch.float64) * torch.arange(1, n + 1).double() ** -0.7
    kernel, y = x @ x.T, targets(generator, n)
    flat, none = torch.ones(n, n, dtype=torch.float64), 1e-10  # tangent kernels below the readout: all but absent
    layers = [
        HiddenLayer(kernel, flat, 1.0 if k == depth - 1 else none, 0.0, 0.0, fixed_scale(), fixed_scale())
        for k in range(depth)
    ]
    law = deep_law(DeepKernel(none * kernel, layers, n), y, width=width, ridge=ridge)
    values, vectors = torch.linalg.eigh(kernel / n)
    spectrum, target = Spectrum(values.clamp_min(0)), Target((vectors.T @ y)[:, 0].square() / n)
    widths = reduce(matmul, [Features(width)] * depth)
    scalar = renormalise(spectrum, widths, ridge)
    expected = risks(spectrum, target, Samples(math.inf) @ widths, ridge)
    torch.testing.assert_close(law.df1, scalar.df1, rtol=1e-6, atol=0)
    torch.testing.assert_close(law.kappa_features, scalar.kappa2, rtol=1e-6, atol=0)
    torch.testing.assert_close(law.train, expected.test, rtol=1e-6, atol=0)


@pytest.mark.parametrize("depth", [2, 3])
def test_infinite_width_is_kernel_regression(generator, depth):
    p, t, ridge = 20, 5, 1e-3
    kernel = relu_kernel(generator, depth, p, t, bias=0.2)
    y, z = targets(generator, p, 2), targets(generator, t, 2)
    limit = kernel.limit()
    fit = kernel_ridge(limit[:p, :p], y, ridge)
    law = deep_law(kernel, y, z, width=math.inf, ridge=ridge)
    torch.testing.assert_close(law.predictor, limit[p:, :p] @ fit.dual, rtol=1e-8, atol=1e-10)
    assert float(law.train) == pytest.approx(fit.train, rel=1e-8)
    assert float(law.loo) == pytest.approx(fit.loo, rel=1e-8)
    assert float(law.kappa_features) == pytest.approx(ridge, rel=1e-8)
    assert float(law.test_variance) == pytest.approx(0, abs=1e-12)
    steps = [float(deep_law(kernel, y, z, width=n, ridge=ridge).test - law.test) for n in (1e6, 2e6)]
    assert steps[0] == pytest.approx(2 * steps[1], rel=1e-3)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_risk_is_the_slope_of_the_loss_in_a_test_points_weight(generator, depth):
    """The law's own loss lam y^T G y on all points, its derivative taken by differences: no adjoint in it."""
    p, t, width, ridge = 16, 6, 30.0, 1e-2
    kernel, y = relu_kernel(generator, depth, p, t), targets(generator, p + t)
    law = deep_law(kernel, y[:p], y[p:], width=width, ridge=ridge)
    everything = DeepKernel(kernel.inputs, kernel.layers, p + t)

    def loss(e):
        weights = (p + t) * torch.cat([torch.full((p,), 1 / p), torch.full((t,), e / t)]).double()
        law = deep_law(everything, y, width=width, ridge=ridge, weights=weights)
        return float(ridge * (y * (law.resolvent @ y)).sum())

    step = 1e-4
    ground, first, second = loss(1e-9), loss(step), loss(2 * step)
    slope = (4 * first - second - 3 * ground) / (2 * step)
    assert float(law.test) == pytest.approx(slope, rel=1e-4)
    lower, upper = (float(deep_law(kernel, y[:p], width=width, ridge=ridge * f).kappa1) for f in (1 - 1e-4, 1 + 1e-4))
    assert float(law.dkappa1_dridge) == pytest.approx((upper - lower) / (2e-4 * ridge), rel=1e-5)


def test_a_warm_start_changes_nothing(generator):
    kernel, y = relu_kernel(generator, 2, 15, 3), targets(generator, 18)
    near = deep_law(kernel, y[:15], y[15:], width=20, ridge=1e-2)
    warm = deep_law(kernel, y[:15], y[15:], width=20, ridge=3e-3, start=near.orders)
    cold = deep_law(kernel, y[:15], y[15:], width=20, ridge=3e-3)
    assert float(warm.test) == pytest.approx(float(cold.test), rel=1e-7)
    assert warm.iterations < cold.iterations + 3


def test_a_loose_tolerance_takes_fewer_iterations_and_is_kept(generator):
    kernel, y = relu_kernel(generator, 2, 15, 3), targets(generator, 18)
    exact = deep_law(kernel, y[:15], y[15:], width=20, ridge=1e-3)
    loose = deep_law(kernel, y[:15], y[15:], width=20, ridge=1e-3, tolerance=1e-5)
    assert float(loose.test) == pytest.approx(float(exact.test), rel=1e-4)  # ten times the tolerance, the adjoint's
    assert loose.iterations < exact.iterations


def test_bad_input_is_named(generator):
    kernel, y = relu_kernel(generator, 2, 10, 2), targets(generator, 10)
    with pytest.raises(ValueError, match=r"width=0.5 must be at least 1"):
        deep_law(kernel, y, width=0.5, ridge=1e-2)
    with pytest.raises(ValueError, match="ridge"):
        deep_law(kernel, y, width=8, ridge=0.0)
    with pytest.raises(ValueError, match=r"pass \(P, C\)"):
        deep_law(kernel, y[:4], width=8, ridge=1e-2)
    order = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8, 9])
    with pytest.raises(ValueError, match="points 0 and 3 are equal"):
        deep_law(kernel.at(order), y, width=8, ridge=1e-2)
