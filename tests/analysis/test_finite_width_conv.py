"""The channel law of real networks: its infinite-width limit, drawn kernels on digits, and what it refuses."""

import pytest
import torch

from ridgescope.analysis.finite_width import finite_width_law
from ridgescope.analysis.finite_width_conv import channel_examples, channel_kernel
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import CNN, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge

P, T, DRAWS = 40, 40, 40


@pytest.fixture(scope="module")
def digits(parity_digits):
    return parity_digits(P + T)


def cnn(seed, outputs=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return CNN((1, 8, 8), outputs, **{"width": 8, "depth": 1, "generator": generator, **options})


@pytest.mark.parametrize("form", ["full", "trace"])
@pytest.mark.parametrize(
    "options",
    [
        {"parameterisation": "ntk", "bias_std": 0.4},
        {"parameterisation": "mup", "activation": "gelu", "strides": 2},
        {"parameterisation": "standard", "activation": "tanh", "bias_std": 0.3, "readout": "pool"},
        {"parameterisation": "ntk", "weight_std": 0.7, "readout": "pool"},
    ],
)
def test_the_mean_of_the_examples_is_the_infinite_kernel(digits, options, form):
    x = digits[0][:20]
    network = cnn(0, 3, **options)
    mean = channel_examples(network, x, 12, form=form, features=20000, seed=0).limit()
    wanted = infinite_ntk(network, x).ntk
    unit = float(wanted.diagonal().mean())
    # the examples' own error: 1 / sqrt(20000 features) is 0.7 %
    assert float((mean.train - wanted[:12, :12]).abs().max()) < 0.03 * unit
    assert float((mean.cross - wanted[12:, :12]).abs().max()) < 0.03 * unit
    kernel = channel_kernel(network, x[:12], x[12:], form=form, features=500)
    torch.testing.assert_close(kernel.limit().train, wanted[:12, :12], rtol=1e-9, atol=1e-9)


def test_more_positions_than_points_lose_nothing(digits):
    """64 features of a channel at 12 training points are 12: the kernel with training points is the same."""
    x = digits[0][:20]
    wide = channel_examples(cnn(0), x, 20, form="full", features=500, seed=0).mean().train
    narrow = channel_examples(cnn(0), x, 12, form="full", features=500, seed=0).mean()
    assert channel_examples(cnn(0), x, 12, form="full", features=500, seed=0).families[0].features.shape[1] == 12
    torch.testing.assert_close(narrow.train, wide[:12, :12])
    torch.testing.assert_close(narrow.cross, wide[12:, :12])


@pytest.mark.slow
@pytest.mark.parametrize(("readout", "ridge"), [("flatten", 1e-3), ("pool", 1e-4)])
@pytest.mark.parametrize(("outputs", "form"), [(1, "full"), (3, "full"), (3, "trace")])
def test_drawn_networks_follow_the_law(digits, readout, ridge, outputs, form):
    x, y = digits
    if outputs > 1:
        y = torch.randn(P + T, outputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        y[:, 0] = digits[1][:, 0]
    options = {"readout": readout, "bias_std": 0.2, "width": 8 * outputs if form == "full" else 8}
    found = []
    for seed in range(DRAWS):
        network = cnn(100 + seed, outputs, **options)
        kernel = empirical_ntk(network, None, x, form=form) / network.kernel_scale
        if form == "trace" or outputs == 1:
            kernel = kernel.view(P + T, P + T)
            prediction = kernel[P:, :P] @ kernel_ridge(kernel[:P, :P], y[:P], ridge).dual
        else:
            blocks = kernel.view(outputs, P + T, outputs, P + T)
            dual = full_kernel_ridge(blocks[:, :P, :, :P].reshape(outputs * P, -1), y[:P], ridge).dual
            prediction = (blocks[:, P:, :, :P].reshape(outputs * T, -1) @ dual).view(outputs, T).T
        found.append(float((y[P:] - prediction).square().sum(1).mean()))
    sample = torch.tensor(found, dtype=torch.float64)
    mean, error = float(sample.mean()), float(sample.std()) / DRAWS**0.5
    law = finite_width_law(cnn(0, outputs, **options), x[:P], y[:P], x[P:], y[P:], ridge=ridge, form=form)
    assert float(law.test_variance / law.test) > 0.03  # or the width would not matter
    assert abs(float(law.test) - mean) <= 4 * error + 0.02 * mean


def test_architectures_without_a_law_are_named(digits):
    x, y = digits
    with pytest.raises(ValueError, match="derived for a CNN with one or two convolutions, got CNN of depth 3"):
        channel_kernel(cnn(0, depth=3), x[:P])
    with pytest.raises(ValueError, match="trained='readout' has no law for CNN of depth 1"):
        finite_width_law(cnn(0), x[:P], y[:P], x[P:], y[P:], ridge=1e-2, trained="readout")
