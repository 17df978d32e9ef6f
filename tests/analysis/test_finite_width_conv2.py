"""The law of two convolutions: its mean kernel given the first layer, drawn kernels on digits, and what it refuses."""

import pytest
import torch
from torch.func import functional_call, jacrev

from ridgescope.analysis.finite_width import finite_width_law, law_of
from ridgescope.analysis.finite_width_conv2 import FirstLayer, _given, two_convolutions_kernel
from ridgescope.models import CNN, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge

P, T = 40, 40


@pytest.fixture(scope="module")
def digits(parity_digits):
    return parity_digits(P + T)


def cnn(seed, outputs=1, **options):
    generator = torch.Generator().manual_seed(seed)
    defaults = {"width": 6, "depth": 2, "strides": (2, 2), "generator": generator}
    return CNN((1, 8, 8), outputs, **{**defaults, **options})


def below(network, x):
    """Features of the first layer's weights, (c n, entries): its share of ``empirical_ntk``."""
    names = [name for name, _ in network.named_parameters() if name.startswith("hidden.0.")]
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def outputs(part):
        return functional_call(network, parameters | part, (x,)).T

    jacobian = jacrev(outputs)({name: parameters[name] for name in names})
    return torch.cat([jacobian[name].flatten(2) for name in names], 2).flatten(0, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"parameterisation": "ntk", "bias_std": 0.4},
        {"parameterisation": "mup", "activation": "gelu", "strides": (1, 2), "readout": "pool"},
    ],
)
def test_examples_given_the_first_layer_have_the_mean_of_its_networks(digits, options):
    """The first layer is held, everything above drawn anew: both families above it, and the first layer's own."""
    x, networks = digits[0][:8], 300
    network = cnn(0, 2, **options)
    points = x.view(-1, 1, 8, 8)
    first = FirstLayer(network, points, torch.Generator().manual_seed(0))
    upper, images = first.rest()
    rows = _given(first, 6, "full", 20000, 0).linked.below[:, :, :, 0].flatten(1, 2)
    mean = torch.einsum("rkcn,rkcm->nm", rows, rows) / (2 * len(rows) * network.width)
    weights = first.filters
    drawn, whole = torch.zeros(16, 16, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    above = torch.zeros_like(whole)
    for seed in range(networks):
        one = cnn(seed + 1, 2, **options)
        with torch.no_grad():
            one.hidden[0].weight.copy_(weights[:, :9].view(6, 1, 3, 3))
            if one.hidden[0].bias is not None:
                one.hidden[0].bias.copy_(weights[:, 9])
        features = below(one, x)
        share = features @ features.T / one.kernel_scale
        drawn += share / networks
        rest = empirical_ntk(one, None, x, form="trace") / one.kernel_scale
        above += (rest - (share[:8, :8] + share[8:, 8:]) / 2) / networks
    unit = float(drawn.diagonal().mean())
    trace = (drawn[:8, :8] + drawn[8:, 8:]) / 2
    assert float((mean - trace).norm()) < 0.1 * float(trace.norm())
    assert float(mean.diagonal().mean()) == pytest.approx(unit, rel=0.08)
    limit = infinite_ntk(upper, images).ntk
    assert float((limit - above).norm()) < 0.08 * float(above.norm())


def drawn_risks(x, y, size, ridge, networks, **options):
    found = []
    for seed in range(networks):
        one = cnn(100 + seed, **options)
        kernel = empirical_ntk(one, None, x, form="trace") / one.kernel_scale
        prediction = kernel[size:, :size] @ kernel_ridge(kernel[:size, :size], y[:size], ridge).dual
        found.append(float((y[size:] - prediction).square().mean()))
    sample = torch.tensor(found, dtype=torch.float64)
    return float(sample.mean()), float(sample.std()) / networks**0.5


def require_law(x, y, size, ridge, networks, draws, tolerance, **options):
    mean, error = drawn_risks(x, y, size, ridge, networks, **options)
    kernel = two_convolutions_kernel(cnn(0, **options), x[:size], x[size:], draws=draws)
    law = law_of(kernel, y[:size], y[size:], width=options["width"], ridge=ridge)
    assert float(law.test_variance / law.test) > 0.05  # or the width would not matter
    assert abs(float(law.test) - mean) <= 4 * error + tolerance * mean


def test_drawn_networks_follow_the_law(digits):
    require_law(*digits, P, 1e-2, 60, 6, 0.05, width=6, bias_std=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize("readout", [{}, {"readout": "pool", "strides": (1, 2)}])
def test_drawn_networks_follow_the_law_at_more_points(parity_digits, width, readout):
    require_law(*parity_digits(200), 100, 1e-3, 60, 8, 0.05, width=width, **readout)


def test_architectures_without_a_law_are_named(digits):
    x, y = digits
    with pytest.raises(ValueError, match="derived for a CNN with two convolutions, got a CNN of depth 3"):
        two_convolutions_kernel(cnn(0, depth=3, strides=1), x[:P], x[P:])
    with pytest.raises(ValueError, match="parameterisation='ntk' and 'mup', got 'standard'"):
        finite_width_law(cnn(0, parameterisation="standard"), x[:P], y[:P], x[P:], y[P:], ridge=1e-2)
    kernel = two_convolutions_kernel(cnn(0), x[:P], x[P:], draws=1)
    with pytest.raises(ValueError, match="width=8 for a kernel drawn at width 6"):
        law_of(kernel, y[:P], y[P:], width=8, ridge=1e-2)
