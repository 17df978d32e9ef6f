"""Linear and convolutional layers whose scales stand outside the weights.

``y = weight_scale * W x + bias_scale * b`` with ``W_ij ~ N(0, weight_std^2)``, ``b_i ~ N(0, bias_std^2)``.
Gradient descent acts on ``W`` and ``b``, so moving a factor from ``weight_std`` to ``weight_scale`` leaves
the network as it is and changes how it learns: that choice is the parameterisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ridgescope.models.patches import Geometry, Patches


def _draw(layer: nn.Linear | nn.Conv2d, weight_std: float, bias_std: float, generator: torch.Generator | None) -> None:
    nn.init.normal_(layer.weight, std=weight_std, generator=generator)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=bias_std, generator=generator)


class ScaledLinear(nn.Linear):
    """``y = weight_scale * W x + bias_scale * b``; without a bias parameter where ``bias_scale`` is 0."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        weight_scale: float,
        bias_scale: float,
        weight_std: float = 1.0,
        bias_std: float = 1.0,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias_scale != 0, dtype=dtype)
        self.weight_scale, self.bias_scale = weight_scale, bias_scale
        self.weight_std, self.bias_std = weight_std, bias_std
        _draw(self, weight_std, bias_std, generator)

    def reset_parameters(self) -> None:
        """Draw nothing: torch's own draw would consume the global generator."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 1:
            output = self.weight_scale * (self.weight @ input)
        else:  # W x in this order: the gradient of W is then made as W lies, without a transposing copy in an ensemble
            output = self.weight_scale * (self.weight @ input.mT).mT
        return output if self.bias is None else output + self.bias_scale * self.bias

    @property
    def fan_in(self) -> int:
        return self.in_features


class ScaledConv2d(nn.Conv2d):
    """The same with a 3x3 convolution, zero padding 1, a stride: ``H`` rows become ``ceil(H / stride)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        weight_scale: float,
        bias_scale: float,
        weight_std: float = 1.0,
        bias_std: float = 1.0,
        *,
        stride: int = 1,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        bias = bias_scale != 0
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias, dtype=dtype)
        self.weight_scale, self.bias_scale = weight_scale, bias_scale
        self.weight_std, self.bias_std = weight_std, bias_std
        _draw(self, weight_std, bias_std, generator)

    def reset_parameters(self) -> None:
        """Draw nothing: torch's own draw would consume the global generator."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_scale * self.weight  # far fewer numbers than the output
        if input.dtype == torch.float64 and input.device.type == "cpu":
            output = _convolve(input, weight, Geometry.of(self))
        else:
            output = F.conv2d(input, weight, stride=self.stride, padding=self.padding)
        return output if self.bias is None else output + self.bias_scale * self.bias[:, None, None]

    @property
    def fan_in(self) -> int:
        return 9 * self.in_channels


def _convolve(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution as a matrix product over patches.

    float64 has no fast convolution on a CPU: torch's own, grouped as an ensemble needs it, takes six times as long.
    """
    product = weight.flatten(1) @ Patches.apply(input, geometry)
    return product.unflatten(2, geometry.positions(*input.shape[2:]))
