"""What the weights and biases of each layer make of the averages that its neurons read, at infinite width."""

from dataclasses import dataclass

from torch import Tensor

from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.network import Network


@dataclass(frozen=True)
class Affine:
    """``K = weight V + bias`` and ``T = tangent P + own V + own_bias``, with averages V of ``D(K)``, P of ``D'(K) T``.

    The first layer reads sums of products of inputs in place of V, and P = 0.
    """

    weight: float
    bias: float
    tangent: float
    own: float
    own_bias: float

    def covariance(self, value: Tensor) -> Tensor:
        return value * self.weight + self.bias

    def tangent_kernel(self, value: Tensor, passed: Tensor) -> Tensor:
        """In place of ``passed``."""
        return passed.mul_(self.tangent).add_(value, alpha=self.own).add_(self.own_bias)

    def row(self, window: float = 1.0) -> tuple[float, float, float, float, float]:
        """For sums over windows of that many entries in place of averages."""
        return self.weight / window, self.bias, self.tangent / window, self.own / window, self.own_bias


def affine_layers(network: Network) -> list[Affine]:
    """Of the hidden layers and the readout, whose kernels are in the units of `infinite_ntk`."""
    hidden = [_affine(layer, 1 if i == 0 else layer.fan_in) for i, layer in enumerate(network.layers[:-1])]
    # kernel_scale is 1/width for mup: its outputs have that variance too
    scale = network.kernel_scale
    return [*hidden, _affine(network.readout, network.readout.fan_in, scale, network.parameterisation == "mup")]


def _affine(
    layer: ScaledLinear | ScaledConv2d, fan_in: int, scale: float = 1.0, covariance_too: bool = False
) -> Affine:
    weight = fan_in * (layer.weight_scale * layer.weight_std) ** 2
    bias = (layer.bias_scale * layer.bias_std) ** 2
    divisor = scale if covariance_too else 1.0
    own, own_bias = fan_in * layer.weight_scale**2, layer.bias_scale**2
    return Affine(weight / divisor, bias / divisor, weight / scale, own / scale, own_bias / scale)
