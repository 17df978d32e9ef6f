"""The block law of real networks: their own kernels on real images, drawn many times, and what it refuses."""

import pytest
import torch

from ridgescope.analysis.finite_width import block_kernel, finite_width_law
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import CNN, MLP, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge

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


@pytest.mark.slow
def test_coupled_outputs(digits):
    """The full C x C kernel couples outputs through the hidden layer; its risk is not that of the trace form."""
    x, _ = digits
    p, ridge, outputs, width = 30, 1e-3, 4, 12
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
                blocks = kernel.view(outputs, p + T, outputs, p + T)
                full = full_kernel_ridge(blocks[:, :p, :, :p].reshape(outputs * p, -1), y[:p], ridge)
                prediction = (blocks[:, p:, :, :p].reshape(outputs * T, -1) @ full.dual).view(outputs, T).T
            row.append(float((y[p:] - prediction).square().sum(1).mean()))
        found.append(row)
    sample = torch.tensor(found, dtype=torch.float64)
    mean, error = sample.mean(0), sample.std(0) / DRAWS**0.5
    arguments = (mlp(0, outputs, width=width), x[:p], y[:p], x[p:], y[p:])
    full, trace = (float(finite_width_law(*arguments, ridge=ridge, form=form).test) for form in ("full", "trace"))
    assert abs(mean[0] - full) <= 4 * error[0] + 0.02 * full
    assert abs(mean[1] - trace) <= 4 * error[1] + 0.02 * trace


def test_architectures_without_a_law_are_named(digits):
    x, _ = digits
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="CNN of depth 1"):
        block_kernel(CNN((1, 8, 8), 1, width=4, depth=1, generator=generator), x)
    with pytest.raises(ValueError, match="MLP of depth 4"):
        block_kernel(mlp(0, depth=4), x)
