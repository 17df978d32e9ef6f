"""The deep law of real networks: its infinite-width limit, drawn kernels on digits, and what it refuses."""

import pytest
import torch

from ridgescope.analysis.finite_width import finite_width_law
from ridgescope.analysis.finite_width_depth import deep_kernel
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import CNN, MLP, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge

P, T, DRAWS = 50, 50, 40


@pytest.fixture(scope="module")
def digits(parity_digits):
    return parity_digits(P + T)


def mlp(seed, outputs=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return MLP((64,), outputs, **{"width": 48, "depth": 2, "generator": generator, **options})


@pytest.mark.parametrize("parameterisation", ["ntk", "mup", "standard"])
@pytest.mark.parametrize(("activation", "depth"), [("relu", 2), ("erf", 3), ("gelu", 2), ("tanh", 3)])
def test_the_limit_of_the_layers_is_the_infinite_kernel(digits, activation, depth, parameterisation):
    x = digits[0][:30]
    network = mlp(0, 2, activation=activation, depth=depth, parameterisation=parameterisation, bias_std=0.4)
    kernel = deep_kernel(network, x[:20], x[20:], form="trace")
    torch.testing.assert_close(kernel.limit(), infinite_ntk(network, x).ntk, rtol=1e-9, atol=1e-9)
    for layer in kernel.layers:
        assert layer.value_scale.mean == pytest.approx(1, rel=1e-9)
        assert layer.gate_scale.mean == pytest.approx(1, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "outputs"), [(2, 1), (3, 1), (2, 3)])
def test_drawn_networks_follow_the_law(digits, depth, outputs):
    """Regression with the full C x C kernel; with one output it is the trace form."""
    x, y = digits
    y = torch.cat([y, x[:, 20:22]], 1)[:, :outputs]
    ridge = 1e-3
    found = []
    for seed in range(DRAWS):
        network = mlp(100 + seed, outputs, depth=depth)
        kernel = empirical_ntk(network, None, x).view(outputs, P + T, outputs, P + T) / network.kernel_scale
        dual = full_kernel_ridge(kernel[:, :P, :, :P].reshape(outputs * P, -1), y[:P], ridge).dual
        prediction = (kernel[:, P:, :, :P].reshape(outputs * T, -1) @ dual).view(outputs, T).T
        found.append(float((y[P:] - prediction).square().sum(1).mean()))
    sample = torch.tensor(found, dtype=torch.float64)
    mean, error = float(sample.mean()), float(sample.std()) / DRAWS**0.5
    law = finite_width_law(mlp(0, outputs, depth=depth), x[:P], y[:P], x[P:], y[P:], ridge=ridge)
    limit = infinite_ntk(mlp(0, depth=depth), x).ntk
    fit = kernel_ridge(limit[:P, :P], y[:P], ridge)
    infinite = float((y[P:] - limit[P:, :P] @ fit.dual).square().sum(1).mean())
    assert mean > 1.1 * infinite  # or the width would not matter
    # 3 %: what the benchmark leaves at this width; infinite width misses by more than three times as much
    assert abs(float(law.test) - mean) <= 4 * error + 0.03 * mean


def test_architectures_without_a_law_are_named(digits):
    x, y = digits
    generator = torch.Generator().manual_seed(0)
    rest = {"ridge": 1e-2}
    with pytest.raises(ValueError, match="MLP of depth 4"):
        finite_width_law(mlp(0, depth=4), x[:P], y[:P], x[P:], y[P:], **rest)
    with pytest.raises(ValueError, match="CNN of depth 2"):
        deep_kernel(CNN((1, 8, 8), 1, width=4, depth=2, generator=generator), x)
    with pytest.raises(ValueError, match="trained='readout' has no law for MLP of depth 2"):
        finite_width_law(mlp(0), x[:P], y[:P], x[P:], y[P:], trained="readout", **rest)
    with pytest.raises(ValueError, match=r"width=8 is too narrow for the law of depth 2 at 50 numbers to fit"):
        finite_width_law(mlp(0, width=8), x[:P], y[:P], x[P:], y[P:], **rest)
