"""The infinite-width recursion of a tile of pairs, layer by layer in torch, on any device.

For GPUs, and for activations that have no closed form; on the CPU `ridgescope.models.kernels.infinite.images` and
`ridgescope.models.kernels.infinite.dense` do the same faster for the others.

Axes: s pixels (1 in an MLP); n, m inputs; k entries of a window of the input.
"""

import math
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.kernels.infinite.affine import Affine
from ridgescope.models.kernels.infinite.tasks import Inputs, Task
from ridgescope.models.kernels.infinite.threads import Workers
from ridgescope.models.layers import ScaledConv2d
from ridgescope.models.network import Network
from ridgescope.models.patches import Geometry

TILE_NUMBERS = 2**18  # pixels times pairs in a tile: 2 MB an array, so that the recursion runs in cache


def fill(task: Task, workers: Workers) -> None:
    network, dual, largest = task.network, DUALS[task.network.activation], task.largest()
    windows1 = _windows(network, task.one)
    windows2 = windows1 if task.symmetric else _windows(network, task.two)
    recursion = _pooled if isinstance(network, CNN) and network.pooled else _recursion
    if windows1.device.type == "cpu" and network.activation == "tanh":
        compiled().warm_up()

    @lru_cache(maxsize=2)  # tiles come row by row, so that neighbours share it
    def prepared_rows(start: int, stop: int) -> list[Tensor]:
        pairs = zip(task.one.variances, largest, strict=True)
        return [dual.prepare(q1[:, start:stop, None], most) for q1, most in pairs]

    def tile(p: slice, q: slice) -> tuple[Tensor, Tensor]:
        left = prepared_rows(p.start, p.stop)
        right = [dual.prepare(q2[:, None, q], most) for q2, most in zip(task.two.variances, largest, strict=True)]
        value, passed = recursion(network, task.affine, windows1[:, p], windows2[:, q], left, right)
        return task.affine[-1].covariance(value), task.affine[-1].tangent_kernel(value, passed)

    task.in_tiles(workers, max(1, int((TILE_NUMBERS / len(windows1)) ** 0.5)), tile)


def _windows(network: Network, inputs: Inputs) -> Tensor:
    """What a neuron of the first layer reads (s, n, k)."""
    first = network.layers[0]
    if isinstance(first, ScaledConv2d):
        images = inputs.values.view(-1, *network.in_shape)
        return Geometry.of(first).patches(images).permute(2, 0, 1).contiguous()
    return inputs.values[None]


def _recursion(
    network: Network,
    affine: list[Affine],
    left: Tensor,
    right: Tensor,
    prepared1: list[Tensor],
    prepared2: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """``D(K)`` and ``D'(K) T`` of the last layer, averaged over pixels (n, m), from windows (s, n, k), (s, m, k) and
    prepared variances."""
    shapes = network.pixels if isinstance(network, CNN) else [(1, 1)] * network.depth
    products = left @ right.transpose(1, 2)
    value, passed = _hidden(network, affine, shapes, products, prepared1, prepared2)
    return value.mean(0), passed.mean(0)


def _pooled(
    network: Network,
    affine: list[Affine],
    left: Tensor,
    right: Tensor,
    prepared1: list[Tensor],
    prepared2: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The same averaged over all pairs of pixels (s, t).

    Convolutions never mix displacements ``t - s``: those of one displacement in the last image stem from its
    multiples by the strides in the earlier ones. One displacement at a time, nothing of size s^2 is held.
    """
    assert isinstance(network, CNN)
    shapes, strides = network.pixels, network.strides
    height, width = shapes[-1]
    steps = [math.prod(strides[i + 1 :]) for i in range(network.depth)]
    value = left.new_zeros(left.shape[1], right.shape[1])
    passed = torch.zeros_like(value)
    for down in range(1 - height, height):
        for along in range(1 - width, width):
            places = [_Overlap(shape, step * down, step * along) for shape, step in zip(shapes, steps, strict=True)]
            here1 = [place.first(q, 3) for place, q in zip(places, prepared1, strict=True)]
            here2 = [place.second(q, 3) for place, q in zip(places, prepared2, strict=True)]
            products = places[0].first(left, 3) @ places[0].second(right, 3).transpose(1, 2)
            values, slopes = _hidden(network, affine, [place.shape for place in places], products, here1, here2)
            value += values.sum(0)
            passed += slopes.sum(0)
    pairs = (height * width) ** 2
    return value / pairs, passed / pairs


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

    def _cut(self, values: Tensor, axis: int, side: int) -> Tensor:
        grid = values.unflatten(-axis, self.image)
        rows, columns = grid.ndim - axis - 1, grid.ndim - axis
        (top, start), (height, width) = self.starts[side], self.shape
        return grid.narrow(rows, top, height).narrow(columns, start, width).flatten(rows, columns)


def _hidden(
    network: Network,
    affine: list[Affine],
    shapes: list[tuple[int, int]],
    products: Tensor,
    prepared1: list[Tensor],
    prepared2: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The last layer's ``D(K)`` and ``D'(K) T``, (s, n, m), from the first windows' products."""
    strides = network.strides[1:] if isinstance(network, CNN) else ()
    covariance, tangent = affine[0].covariance(products), affine[0].tangent_kernel(products, torch.zeros_like(products))
    for i, layer in enumerate(affine[1:-1]):
        value, passed = _activate(network.activation, covariance, tangent, prepared1[i], prepared2[i])
        if strides:
            value, passed = (window_mean(v, shapes[i], strides[i]) for v in (value, passed))
        covariance, tangent = layer.covariance(value), layer.tangent_kernel(value, passed)
    return _activate(network.activation, covariance, tangent, prepared1[-1], prepared2[-1])


def _activate(
    activation: str, covariance: Tensor, tangent: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """``D(K)`` and ``D'(K) T``; tanh on the CPU in place of both."""
    if activation == "tanh" and covariance.device.type == "cpu":
        arrays = (covariance, tangent, *(v.view(-1, len(covariance), v.shape[-2:].numel()) for v in (left, right)))
        compiled().hermite(*(v.contiguous().numpy() for v in arrays))
        return covariance, tangent
    value, derivative = DUALS[activation].pair(covariance, left, right)
    return value, derivative.mul_(tangent)


@cache
def compiled() -> ModuleType:
    """Imported where it is first needed: Numba takes half a second."""
    return import_module("ridgescope.models.kernels.infinite.hermite")


def window_mean(v: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Mean over 3x3 windows of an image of this shape (s, ...) with zeros around it, one axis after the other."""
    if v.ndim == 3 and v.device.type == "cpu":
        return torch.from_numpy(compiled().window_means(v.contiguous().numpy(), *shape, stride))
    image = v.unflatten(0, shape)
    return _window_sum(_window_sum(image, 0, stride), 1, stride).flatten(0, 1).mul_(1 / 9)


def _window_sum(image: Tensor, axis: int, stride: int) -> Tensor:
    """``sum_(d=-1,0,1) image[stride i + d]`` along an axis."""
    source = image.movedim(axis, 0)
    total = source[::stride].clone()
    after = source[1::stride]
    total[: len(after)] += after
    total[1:] += source[stride - 1 :: stride][: len(total) - 1]
    return total.movedim(0, axis)
