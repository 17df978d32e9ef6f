"""The multilayer perceptron: ``f(x) = readout(phi(z_L))``, ``z_1 = W_1 x / sqrt(d)``."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ridgescope.models.network import Network, Scaling


class MLP(Network):
    """``depth`` hidden layers of ``width`` neurons, in the ntk parameterisation

        z_1 = W_1 x / sqrt(d) + s_b b_1
        z_l = s_w / sqrt(width) W_l phi(z_(l-1)) + s_b b_l            W_ij, b_i ~ N(0, 1)
        f   = s_w / sqrt(width) V phi(z_depth) + s_b b

    and as in `ridgescope.models.network` for mup and standard. ``s_w = weight_std``, by default the
    activation's gain (sqrt 2 for ReLU); ``|x|^2 = d`` gives ``Var f = 1`` at any width; ``s_b = bias_std``.

    Inputs of any trailing shape with ``prod(in_shape)`` entries are flattened; outputs ``(n, num_outputs)``.

    >>> net = MLP((8, 8), 10, width=32, depth=2, generator=torch.Generator().manual_seed(0))
    >>> net(torch.ones(5, 8, 8, dtype=torch.float64)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        *,
        width: int,
        depth: int,
        activation: str = "relu",
        parameterisation: str = "ntk",
        weight_std: float | None = None,
        bias_std: float = 0.0,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        scaling = Scaling(width, depth, activation, parameterisation, weight_std, bias_std, generator, dtype)
        super().__init__(in_shape, num_outputs, scaling)
        fan_ins = [math.prod(self.in_shape)] + [width] * (depth - 1)
        self.hidden = nn.ModuleList(scaling.linear(layer, fan_in, width) for layer, fan_in in enumerate(fan_ins))
        self.readout = scaling.linear(depth, width, num_outputs, readout=True)

    def features(self, x: Tensor) -> Tensor:
        self.require_input(x)
        x = x.flatten(1)
        for layer in self.hidden:
            x = self._activate(layer(x))
        return x
