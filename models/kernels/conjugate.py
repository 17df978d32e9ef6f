"""The conjugate (last-layer) kernel: the Gram matrix of what the readout reads.

It is the share of the readout's own weights in the empirical NTK, and the kernel of ridge regression on the
network's last features.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ridgescope.models.kernels.checks import Parameters, checked_outputs, checked_parameters
from ridgescope.models.kernels.structured.layers import run_recorded, supported_layers


def conjugate_kernel(
    model: nn.Module,
    params: Parameters | None,
    x1: Shaped[Tensor, " n *shape"],
    x2: Shaped[Tensor, " m *shape"] | None = None,
    *,
    batch: int = 1000,
) -> Float[Tensor, "n m"]:
    """``weight_scale^2 phi(x1) phi(x2)^T + bias_scale^2``, phi the input of the network's final linear layer.

    Exactly the readout's share of each diagonal block of `empirical_ntk` (both scales are 1 for
    ``nn.Linear``, the bias term only where there is a bias); divide by ``model.kernel_scale`` to compare
    widths.

    Source: Lee et al. 2018, arXiv:1711.00165 (its infinite-width limit).

    Cost: one forward pass and n m k products for k features; memory (n + m) k numbers and the result.
    Raises ``ValueError`` as `empirical_ntk` does, and where the network does not end in a linear layer.
    """
    params = checked_parameters(model, params, x1, *(() if x2 is None else (x2,)))
    checked_outputs(model, params, x1)
    left = _readout_inputs(model, params, x1, batch)
    right = left if x2 is None else _readout_inputs(model, params, x2, batch)
    kernel = left @ right.T
    return kernel if x2 is not None else kernel.triu() + kernel.triu(1).T


def _readout_inputs(model: nn.Module, params: Parameters, x: Tensor, batch: int) -> Tensor:
    linear = {name: layer for name, layer in supported_layers(model).items() if isinstance(layer, nn.Linear)}
    return torch.cat([_one_batch(model, params, linear, part) for part in x.split(batch)])


def _one_batch(model: nn.Module, params: Parameters, linear: Mapping[str, nn.Linear], x: Tensor) -> Tensor:
    outputs, uses = run_recorded(model, params, linear, x)
    for calls in uses.values():
        if len(calls) == 1 and calls[0].is_outcome(outputs):
            return calls[0].inputs[:, 0]
    raise ValueError(
        "the model's outputs are not those of one nn.Linear or ScaledLinear, so it has no conjugate "
        "kernel; end it in a linear layer with weights of its own"
    )
