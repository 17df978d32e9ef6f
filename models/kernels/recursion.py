"""What every tile of the infinite-width kernels shares: a layer's affine step, and the variances of its inputs.

Axes: s pixels (1 in an MLP); n inputs.
"""

from typing import NamedTuple

from torch import Tensor

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.network import Network


class Step(NamedTuple):
    """Covariance ``from_sum A + bias`` and tangent kernel ``from_value A + from_passed B + bias_passed`` of a layer's
    outputs, from averages A of ``D(K)`` and B of ``D'(K) T`` over what a neuron reads."""

    from_sum: float
    bias: float
    from_value: float
    from_passed: float
    bias_passed: float

    @classmethod
    def of(cls, layer: ScaledLinear | ScaledConv2d, entries: int) -> "Step":
        """``entries``: over how many weights of a neuron the average is (1: the sum is given)."""
        weight = (layer.weight_scale * layer.weight_std) ** 2
        bias = (layer.bias_scale * layer.bias_std) ** 2
        return cls(entries * weight, bias, entries * layer.weight_scale**2, entries * weight, layer.bias_scale**2)

    def __call__(self, value: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrites ``passed``."""
        covariance = value * self.from_sum + self.bias
        return covariance, passed.mul_(self.from_passed).add_(value, alpha=self.from_value).add_(self.bias_passed)


def steps(network: Network) -> list[Step]:
    """Of every layer: the first from sums over its window of the inputs' products, the others from averages."""
    first, *later = network.layers
    return [Step.of(first, 1), *(Step.of(layer, layer.fan_in) for layer in later)]


def variances(network: Network, squared: Tensor) -> list[Tensor]:
    """Of the preactivations of every hidden layer, each (s, n), from the windows' squared lengths (s, n)."""
    dual = DUALS[network.activation]
    first, *later = steps(network)[:-1]
    found = [first.from_sum * squared + first.bias]
    for i, step in enumerate(later):
        q = found[-1]
        mean = dual(q, q, q)[0]
        if isinstance(network, CNN):
            mean = window_sum(mean, network.pixels[i], network.strides[i + 1]) / 9
        found.append(step.from_sum * mean + step.bias)
    return found


def window_sum(v: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Sum over 3x3 windows of an image of this shape (s, ...) with zeros around it, one axis after the other."""
    image = v.unflatten(0, shape)
    return _along(_along(image, 0, stride), 1, stride).flatten(0, 1)


def _along(image: Tensor, axis: int, stride: int) -> Tensor:
    """``sum_(d=-1,0,1) image[stride i + d]`` along an axis."""
    source = image.movedim(axis, 0)
    total = source[::stride].clone()
    after = source[1::stride]
    total[: len(after)] += after
    total[1:] += source[stride - 1 :: stride][: len(total) - 1]
    return total.movedim(0, axis)
