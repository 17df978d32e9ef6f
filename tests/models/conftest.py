"""Oracles and inputs for the model tests: the simplest correct kernel, one explicit Jacobian."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


def explicit_ntk(model: nn.Module, x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """J(x1) J(x2)^T with rows c n + i, from the whole Jacobian."""
    left = _jacobian(model, x1)
    return left @ (left if x2 is None else _jacobian(model, x2)).T


def _jacobian(model: nn.Module, x: Tensor) -> Tensor:
    params = {name: value.detach() for name, value in model.named_parameters()}
    parts = jacrev(lambda some: functional_call(model, some, (x,)))(params).values()
    return torch.cat([part.flatten(2) for part in parts], dim=2).transpose(0, 1).flatten(0, 1)


@pytest.fixture
def ntk_oracle():
    return explicit_ntk


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def inputs(generator):
    """Draws inputs of a shape with |x|^2 = d, as the data module delivers them."""

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64).flatten(1)
        return (x / x.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5).view(shape).to(dtype)

    return draw
