"""Matrix-free products are products with the kernel, for every form in which a layer is kept."""

import pytest
import torch
from torch import nn

from ridgescope.models import CNN, MLP, NTKProducts, empirical_ntk
from ridgescope.models.kernels import products


def normalised():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)).double()


NETWORKS = {
    "mlp": lambda g: MLP((64,), 3, width=12, depth=2, bias_std=0.2, generator=g),
    "one output": lambda g: MLP((64,), 1, width=12, depth=2, generator=g),
    "cnn": lambda g: CNN((1, 8, 8), 3, width=6, depth=2, strides=(1, 2), bias_std=0.2, generator=g),
    "cnn kept as gradients": lambda g: CNN((1, 8, 8), 3, width=2, depth=2, readout="pool", generator=g),
    "fallback": lambda g: normalised(),
}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_the_kernel(monkeypatch, generator, inputs, name, kept):
    monkeypatch.setattr(products, "WORK", 500)  # several slices
    model, x = NETWORKS[name](generator), inputs(9, 64)
    kernel = empirical_ntk(model, None, x)
    v = torch.randn(len(kernel), 5, generator=generator, dtype=torch.float64)
    product = NTKProducts(model, None, x)
    if not kept:  # as where the factors of all inputs do not fit: three blocks, each passed through twice
        product._kept, product._block = None, 4
    assert len(product) == len(kernel)
    assert float((product(v) - kernel @ v).norm() / (kernel @ v).norm()) < 1e-12


def test_bad_vectors_and_too_little_memory_are_refused(generator, inputs):
    model, x = NETWORKS["mlp"](generator), inputs(4, 64)
    product = NTKProducts(model, None, x)
    for v in (torch.ones(12, 1), torch.ones(11, 1).double()):
        with pytest.raises(ValueError, match=r"expected \(12, vectors\) in torch.float64"):
            product(v)
    with pytest.raises(ValueError, match="memory=100 cannot hold one direction"):
        NTKProducts(model, None, x, memory=100)
