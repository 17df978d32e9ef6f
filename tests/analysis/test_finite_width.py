"""The block law of real networks: their own kernels on real images, drawn many times, and what it refuses."""

import pytest
import torch

from ridgescope.analysis.finite_width import block_kernel, finite_width_law
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import CNN, MLP, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge
from ridgescope.theory.blocks import block_law

P, T, DRAWS = 60, 60, 40


@pytest.fixture(scope="module")
def digits(parity_digits):
    return parity_digits(P + T)


def mlp(seed, outputs=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return MLP((64,), outputs, **{"width": 48, "depth": 1, "generator": generator, **options})


@pytest.mark.parametrize("parameterisation", ["ntk", "mup", "standard"])
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "tanh"])
def test_the_limit_of_the_blocks_is_the_infinite_kernel(digits, activation, parameterisation):
    x, _ = digits
    network = mlp(0, 2, activation=activation, parameterisation=parameterisation, bias_std=0.4)
    limit = block_kernel(network, x[:P], x[P:]).limit()
    whole = infinite_ntk(network, x).ntk
    torch.testing.assert_close(limit.train, whole[:P, :P], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(limit.cross, whole[P:, :P], rtol=1e-9, atol=1e-9)


def drawn(x, y, ridge, part, **options):
    """Mean and standard error of kappa, test and train risk over networks."""
    found = []
    for seed in range(DRAWS):
        network = mlp(100 + seed, **options)
        kernel = empirical_ntk(network, None, x, form="trace") / network.kernel_scale
        if part != "all":
            hidden = [name for name, _ in network.named_parameters() if name.startswith("hidden")]
            gradients = torch.func.jacrev(lambda p, n=network: torch.func.functional_call(n, p, (x,))[:, 0])(
                dict(network.named_parameters())
            )
            chosen = [g.flatten(1) for name, g in gradients.items() if (name in hidden) == (part == "hidden")]
            kernel = sum(g @ g.T for g in chosen).detach() / network.kernel_scale
        a = kernel[:P, :P] + P * ridge * torch.eye(P, dtype=torch.float64)
        fit = kernel_ridge(kernel[:P, :P], y[:P], ridge)
        test = float((y[P:] - kernel[P:, :P] @ fit.dual).square().sum(1).mean())
        found.append([1 / float(torch.linalg.inv(a).trace()), test, fit.train])
    sample = torch.tensor(found, dtype=torch.float64)
    return sample.mean(0), sample.std(0) / DRAWS**0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("all", {}),
        ("all", {"activation": "tanh", "bias_std": 0.3}),
        ("all", {"activation": "gelu", "parameterisation": "standard", "bias_std": 0.2}),
        ("hidden", {"parameterisation": "mup"}),
        ("readout", {"activation": "erf", "bias_std": 0.3, "width": 150}),
    ],
)
def test_drawn_networks_follow_the_law(digits, part, options):
    x, y = digits
    ridge = 1e-2
    mean, error = drawn(x, y, ridge, part, **options)
    law = finite_width_law(mlp(0, **options), x[:P], y[:P], x[P:], y[P:], ridge=ridge, trained=part)
    expected = torch.stack([law.kappa1, law.test, law.train])
    assert float(law.test_variance / law.test) > 0.03  # or the width would not matter
    assert ((mean - expected).abs() <= 4 * error + torch.tensor([0.02, 0.02, 0.04]) * expected).all(), mean / expected


def of_full_kernel(kernel, y, ridge):
    """Predictions (T, C) of regression on the first len(y) points of a full kernel."""
    p, outputs = y.shape
    blocks = kernel.view(outputs, -1, outputs, len(kernel) // outputs)
    fit = full_kernel_ridge(blocks[:, :p, :, :p].reshape(outputs * p, -1), y, ridge)
    return (blocks[:, p:, :, :p].reshape(-1, outputs * p) @ fit.dual).view(outputs, -1).T


@pytest.mark.slow
def test_coupled_outputs(digits):
    """The full C x C kernel couples outputs through the hidden layer; its risk is not that of the trace form."""
    x, _ = digits
    p, ridge, outputs, width = 30, 1e-3, 4, 24
    y = torch.randn(p + T, outputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = torch.cat([x[:p], x[P:]])
    found = []
    for seed in range(DRAWS):
        network = mlp(200 + seed, outputs, width=width)
        row = []
        for form in ("full", "trace"):
            kernel = empirical_ntk(network, None, x, form=form)
            if form == "trace":
                fit = kernel_ridge(kernel[:p, :p], y[:p], ridge)
                prediction = kernel[p:, :p] @ fit.dual
            else:
                prediction = of_full_kernel(kernel, y[:p], ridge)
            row.append(float((y[p:] - prediction).square().sum(1).mean()))
        found.append(row)
    sample = torch.tensor(found, dtype=torch.float64)
    mean, error = sample.mean(0), sample.std(0) / DRAWS**0.5
    arguments = (mlp(0, outputs, width=width), x[:p], y[:p], x[p:], y[p:])
    full, trace = (float(finite_width_law(*arguments, ridge=ridge, form=form).test) for form in ("full", "trace"))
    assert abs(mean[0] - full) <= 4 * error[0] + 0.02 * full
    assert abs(mean[1] - trace) <= 4 * error[1] + 0.02 * trace


def one_of_ten(digits, p):
    """Ten classes by the nearest of ten images: p training points, 20 others."""
    x = digits[0].flatten(1)
    labels = (x[: p + 20] @ x[-10:].T).argmax(1)
    return x[: p + 20], torch.nn.functional.one_hot(labels, 10).double() - 0.1


def test_too_few_neurons_for_the_outputs_are_refused(digits):
    p = 20
    x, y = one_of_ten(digits, p)
    sets = x[:p], y[:p], x[p:], y[p:]
    with pytest.raises(ValueError, match=r"width=16 .* 10 coupled outputs at ridge=0.0001: .* use a larger ridge or"):
        finite_width_law(mlp(0, 10, width=16), *sets, ridge=1e-4)
    finite_width_law(mlp(0, 10, width=48), *sets, ridge=1e-4)
    finite_width_law(mlp(0, 10, width=16), *sets, ridge=1e-1)
    finite_width_law(mlp(0, 10, width=16), *sets, ridge=1e-4, form="trace")
    finite_width_law(mlp(0, 10, width=16), *sets, ridge=1e-4, trained="readout")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "holds"), [(16, False), (48, True)])
def test_what_is_refused_is_wrong_and_what_is_accepted_is_not(digits, width, holds):
    p, ridge = 20, 1e-4
    x, y = one_of_ten(digits, p)
    kernels = (empirical_ntk(mlp(100 + seed, 10, width=width), None, x) for seed in range(DRAWS))
    found = [float((y[p:] - of_full_kernel(kernel, y[:p], ridge)).square().sum(1).mean()) for kernel in kernels]
    sample = torch.tensor(found)
    law = block_law(block_kernel(mlp(0, 10), x[:p], x[p:]), y[:p], y[p:], width=width, ridge=ridge)
    deviation, error = float(law.test / sample.mean() - 1), float(sample.std() / sample.mean()) / DRAWS**0.5
    assert abs(deviation) < 0.10 + 3 * error if holds else deviation < -0.20 - 3 * error


def test_architectures_without_a_law_are_named(digits):
    x, _ = digits
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="CNN of depth 1"):
        block_kernel(CNN((1, 8, 8), 1, width=4, depth=1, generator=generator), x)
    with pytest.raises(ValueError, match="MLP of depth 4"):
        block_kernel(mlp(0, depth=4), x)
