"""Tiles of the infinite-width kernels by torch operations, on any device.

Axes: s pixels (1 in an MLP); n, m inputs; k entries of a window of the input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.kernels.recursion import steps, window_sum
from ridgescope.models.layers import ScaledConv2d
from ridgescope.models.network import Network
from ridgescope.models.patches import Geometry

TILE_NUMBERS = 2**18  # pixels times pairs of inputs: 2 MB an array


def side(network: Network, _: Sequence[float]) -> int:
    """Inputs on one side of a tile."""
    pixels = math.prod(network.pixels[0]) if isinstance(network, CNN) else 1
    return max(1, int((TILE_NUMBERS / pixels) ** 0.5))


@dataclass(frozen=True)
class Inputs:
    """Windows (s, n, k) and what `Dual.prepare` says of every hidden layer's variances, (..., s, n)."""

    windows: Tensor
    prepared: list[Tensor]


def inputs(network: Network, images: Tensor, variances: Sequence[Tensor], largest: Sequence[float]) -> Inputs:
    """Of images (n, ...) and the variances (s, n) of every hidden layer, ``largest`` those of all inputs."""
    first, dual = network.layers[0], DUALS[network.activation]
    if isinstance(first, ScaledConv2d):
        windows = Geometry.of(first).patches(images).permute(2, 0, 1).contiguous()
    else:
        windows = images.flatten(1)[None]
    return Inputs(windows, [dual.prepare(q, most) for q, most in zip(variances, largest, strict=True)])


def tile(network: Network, left: Inputs, right: Inputs, *, upper: bool) -> tuple[Tensor, Tensor]:
    """The averages of ``D(K)`` and ``D'(K) T`` (n, m) that the readout sees; ``upper``: left and right are the same."""
    if isinstance(network, CNN) and network.pooled:
        return _pooled(network, left, right)
    shapes = network.pixels if isinstance(network, CNN) else [(1, 1)] * network.depth
    products = left.windows @ right.windows.transpose(1, 2)
    pairs = [(one[..., None], two[..., None, :]) for one, two in zip(left.prepared, right.prepared, strict=True)]
    value, passed = _hidden(network, shapes, products, pairs)
    return value.mean(0), passed.mean(0)


def _pooled(network: CNN, left: Inputs, right: Inputs) -> tuple[Tensor, Tensor]:
    """With a mean over the last pixels, to which every pair of pixels (s, t) contributes.

    Convolutions never mix displacements ``t - s``: those of one displacement in the last image stem from its
    multiples by the strides in the earlier ones. One displacement at a time, nothing of size s^2 is held.
    """
    shapes, strides = network.pixels, network.strides
    height, width = shapes[-1]
    multiples = [math.prod(strides[i + 1 :]) for i in range(network.depth)]
    value = left.windows.new_zeros(left.windows.shape[1], right.windows.shape[1])
    passed = torch.zeros_like(value)
    for down in range(1 - height, height):
        for along in range(1 - width, width):
            places = [_Overlap(shape, many * down, many * along) for shape, many in zip(shapes, multiples, strict=True)]
            pairs = [
                (place.first(one, 2)[..., None], place.second(two, 2)[..., None, :])
                for place, one, two in zip(places, left.prepared, right.prepared, strict=True)
            ]
            products = places[0].first(left.windows, 3) @ places[0].second(right.windows, 3).transpose(1, 2)
            values, slopes = _hidden(network, [place.shape for place in places], products, pairs)
            value += values.sum(0)
            passed += slopes.sum(0)
    number = (height * width) ** 2
    return value / number, passed / number


class _Overlap:
    """The pixels s of an image for which t = s + displacement is a pixel too: a rectangle, and the same moved."""

    def __init__(self, image: tuple[int, int], down: int, along: int) -> None:
        self.image = image
        self.shape = image[0] - abs(down), image[1] - abs(along)
        self.starts = [(max(0, -down), max(0, -along)), (max(0, down), max(0, along))]

    def first(self, values: Tensor, axis: int) -> Tensor:
        """The entries at s, where pixels are this axis, counted from the end."""
        return self._cut(values, axis, 0)

    def second(self, values: Tensor, axis: int) -> Tensor:
        """The entries at t."""
        return self._cut(values, axis, 1)

    def _cut(self, values: Tensor, axis: int, which: int) -> Tensor:
        grid = values.unflatten(-axis, self.image)
        rows, columns = grid.ndim - axis - 1, grid.ndim - axis
        (top, start), (height, width) = self.starts[which], self.shape
        return grid.narrow(rows, top, height).narrow(columns, start, width).flatten(rows, columns)


def _hidden(
    network: Network,
    shapes: Sequence[tuple[int, int]],
    products: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The last layer's ``D(K)`` and ``D'(K) T``, (s, n, m), from the first windows' products."""
    dual = DUALS[network.activation]
    first, *later = steps(network)[:-1]
    covariance, tangent = first(products, torch.zeros_like(products))
    for i, step in enumerate(later):
        value, derivative = dual.pair(covariance, *pairs[i])
        passed = derivative.mul_(tangent)
        if isinstance(network, CNN):
            value, passed = (window_sum(v, shapes[i], network.strides[i + 1]).div_(9) for v in (value, passed))
        covariance, tangent = step(value, passed)
    value, derivative = dual.pair(covariance, *pairs[-1])
    return value, derivative.mul_(tangent)
