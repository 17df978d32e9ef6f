"""What the MLP and the CNN share: parameterisation, bad input, and the split into features and readout.

With ``sigma = 1`` at the input layer and ``sigma = weight_std`` behind every activation, layer by layer

    ntk       z = sigma / sqrt(fan_in) W a + bias_std b         W_ij, b_i ~ N(0, 1)
    mup       the same, and the readout divided by another sqrt(width) (mean field)
    standard  z = W a + b        W_ij ~ N(0, sigma^2 / fan_in), b_i ~ N(0, bias_std^2)

For inputs with ``|x|^2 = d`` and no biases the default ``weight_std`` (the activation's gain) keeps every
preactivation, and the outputs of ntk and standard, at unit variance for any width; mup's have 1/width. In a
CNN that holds up to the zero padding at the border, and pooling lowers the output variance further, by the
number of pixels where these are uncorrelated; both factors are free of the width.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ridgescope.models.activations import ACTIVATIONS
from ridgescope.models.layers import ScaledConv2d, ScaledLinear

PARAMETERISATIONS = ("ntk", "mup", "standard")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={size}")


@dataclass(frozen=True)
class Scaling:
    """The arguments that decide every layer's scales, checked."""

    width: int
    depth: int
    activation: str
    parameterisation: str
    weight_std: float | None
    bias_std: float
    generator: torch.Generator = field(repr=False)
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        require_positive(width=self.width, depth=self.depth)
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("parameterisation", self.parameterisation, PARAMETERISATIONS)
        if self.weight_std is not None and not 0 < self.weight_std < math.inf:
            raise ValueError(f"weight_std must be positive and finite, got {self.weight_std}")
        if not 0 <= self.bias_std < math.inf:
            raise ValueError(f"bias_std must be at least 0 and finite, got {self.bias_std}")
        if not self.dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {self.dtype}; pass torch.float64")

    def sigma(self, layer: int) -> float:
        """1 at the input layer (its input has unit size already), else ``weight_std`` or the gain."""
        if layer == 0:
            return 1.0
        return ACTIVATIONS[self.activation].gain if self.weight_std is None else self.weight_std

    def linear(self, layer: int, fan_in: int, out: int, readout: bool = False) -> ScaledLinear:
        scales = self._scales(layer, fan_in, readout)
        return ScaledLinear(fan_in, out, *scales, generator=self.generator, dtype=self.dtype)

    def conv(self, layer: int, channels: int, out: int, stride: int) -> ScaledConv2d:
        scales = self._scales(layer, 9 * channels, readout=False)
        return ScaledConv2d(channels, out, *scales, stride=stride, generator=self.generator, dtype=self.dtype)

    def _scales(self, layer: int, fan_in: int, readout: bool) -> tuple[float, float, float, float]:
        """``(weight_scale, bias_scale, weight_std, bias_std)``."""
        scale = self.sigma(layer) / math.sqrt(fan_in)
        if self.parameterisation == "standard":
            return 1.0, 1.0 if self.bias_std > 0 else 0.0, scale, self.bias_std
        divisor = math.sqrt(self.width) if readout and self.parameterisation == "mup" else 1.0
        return scale / divisor, self.bias_std / divisor, 1.0, 1.0


class Network(nn.Module):
    """Hidden layers, each followed by the activation, and a linear ``readout`` of ``features(x)``."""

    hidden: nn.ModuleList  # of ScaledLinear or ScaledConv2d
    readout: ScaledLinear

    def __init__(self, in_shape: Sequence[int], num_outputs: int, scaling: Scaling) -> None:
        super().__init__()
        self.in_shape = tuple(int(size) for size in in_shape)
        if not self.in_shape or min(self.in_shape) < 1:
            raise ValueError(f"in_shape must hold sizes of at least 1, got {self.in_shape}")
        require_positive(num_outputs=num_outputs)
        self.num_outputs, self.width, self.depth = num_outputs, scaling.width, scaling.depth
        self.activation, self.parameterisation = scaling.activation, scaling.parameterisation

    @property
    def kernel_scale(self) -> float:
        """The empirical NTK divided by this is O(1) in width: ntk 1, mup 1/width, standard width."""
        return {"ntk": 1.0, "mup": 1.0 / self.width, "standard": float(self.width)}[self.parameterisation]

    @property
    def learning_rate_scale(self) -> float:
        """``1 / kernel_scale``: with this factor one SGD learning rate serves every width."""
        return 1.0 / self.kernel_scale

    @property
    def layers(self) -> list[ScaledLinear | ScaledConv2d]:
        """The hidden layers, then the readout."""
        hidden = [layer for layer in self.hidden if isinstance(layer, ScaledLinear | ScaledConv2d)]
        return [*hidden, self.readout]

    def features(self, x: Tensor) -> Tensor:
        """What the readout reads, ``(n, readout.in_features)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x))

    def require_input(self, x: Tensor) -> None:
        if x.shape[1:].numel() != math.prod(self.in_shape):
            raise ValueError(f"inputs of shape {tuple(x.shape)} do not fit in_shape={self.in_shape}")

    def _activate(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation].function(z)
