"""The convolutional network: 3x3 convolutions, then a linear readout of all pixels or of their mean."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ridgescope.models.network import Network, Scaling, require_choice, require_positive

READOUTS = ("flatten", "pool")


class CNN(Network):
    """``depth`` convolutions (3x3, zero padding 1) of ``width`` channels, in the ntk parameterisation

        z_1(s) = sum_k W_1k x(s + k) / sqrt(9 C) + s_b b_1                           k over the 3x3 offsets
        z_l(s) = s_w / sqrt(9 width) sum_k W_lk phi(z_(l-1)(s + k)) + s_b b_l         W, b ~ N(0, 1)
        f      = s_w / sqrt(width S) sum_s V_s phi(z_depth(s)) + s_b b                readout="flatten"
        f      = s_w / sqrt(width) V mean_s phi(z_depth(s)) + s_b b                   readout="pool"

    over the S pixels s that the strides leave, and as in `ridgescope.models.network` for mup and standard.
    ``strides``: one integer for every convolution, or one per convolution, for instance ``(1, 2)`` on 8x8
    images or ``(2, 2)`` on 28x28. ``s_w``, ``s_b`` as in the MLP.

    Inputs ``(n, C, H, W)``, or any trailing shape with as many entries; outputs ``(n, num_outputs)``.

    >>> net = CNN((1, 8, 8), 10, width=4, depth=2, strides=(1, 2), generator=torch.Generator().manual_seed(0))
    >>> net.features(torch.ones(5, 64, dtype=torch.float64)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        num_outputs: int,
        *,
        width: int,
        depth: int,
        readout: str = "flatten",
        strides: int | Sequence[int] = 1,
        activation: str = "relu",
        parameterisation: str = "ntk",
        weight_std: float | None = None,
        bias_std: float = 0.0,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        scaling = Scaling(width, depth, activation, parameterisation, weight_std, bias_std, generator, dtype)
        super().__init__(in_shape, num_outputs, scaling)
        if len(self.in_shape) != 3:
            raise ValueError(f"a CNN needs in_shape=(channels, height, width), got {self.in_shape}")
        require_choice("readout", readout, READOUTS)
        self.pooled = readout == "pool"
        self.strides = _per_layer(strides, depth)
        channels = [self.in_shape[0]] + [width] * (depth - 1)
        self.hidden = nn.ModuleList(
            scaling.conv(layer, channels[layer], width, stride) for layer, stride in enumerate(self.strides)
        )
        fan_in = width if self.pooled else width * math.prod(self.pixels[-1])
        self.readout = scaling.linear(depth, fan_in, num_outputs, readout=True)

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """Height and width of the image that leaves each convolution."""
        _, height, width = self.in_shape
        sizes = []
        for stride in self.strides:
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            sizes.append((height, width))
        return sizes

    def features(self, x: Tensor) -> Tensor:
        self.require_input(x)
        x = x.reshape(-1, *self.in_shape)
        for layer in self.hidden:
            x = self._activate(layer(x))
        return x.mean(dim=(2, 3)) if self.pooled else x.flatten(1)


def _per_layer(strides: int | Sequence[int], depth: int) -> tuple[int, ...]:
    per_layer = (strides,) * depth if isinstance(strides, int) else tuple(int(stride) for stride in strides)
    if len(per_layer) != depth:
        raise ValueError(f"strides={per_layer} has {len(per_layer)} entries for depth={depth} convolutions")
    for stride in per_layer:
        require_positive(stride=stride)
    return per_layer
