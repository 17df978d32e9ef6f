"""The kernels of the infinitely wide network: NNGP (covariance of its outputs) and NTK.

Layer by layer, with the activation's dual ``D`` and its derivative ``D'`` (`ridgescope.models.kernels.duals`)
and A the average over what a neuron reads (all neurons; in a convolution also the 3x3 window, zeros outside),

    K_1 = s^2 A[x x'] + s_b^2,                T_1 = w A[x x'] + b
    K_(l+1) = s^2 A[D(K_l)] + s_b^2,          T_(l+1) = w A[D(K_l)] + b + s^2 A[D'(K_l) T_l]

For parameters drawn at unit variance (ntk, mup) ``w = s^2`` and ``b = s_b^2``. With a flattened readout only
covariances of a pixel with itself, in two images, ever enter; with a pooled one those of all pairs of pixels.

Sources: Lee et al. 2018, arXiv:1711.00165; Jacot et al. 2018, arXiv:1806.07572; Arora et al. 2019,
arXiv:1904.11955 for convolutions.

Axes: s pixels (1 in an MLP); n, m inputs; k entries of a window of the input.
"""

import math
import time
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.checks import require_finite
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.mlp import MLP
from ridgescope.models.network import Network
from ridgescope.models.patches import Geometry


@dataclass(frozen=True)
class InfiniteKernels:
    """Both kernels (n, m), float64, in the units of `infinite_ntk`."""

    nngp: Float64[Tensor, "n m"]
    ntk: Float64[Tensor, "n m"]


def infinite_ntk(
    model: nn.Module,
    x1: Float[Tensor, " n *shape"],
    x2: Float[Tensor, " m *shape"] | None = None,
    *,
    max_hours: int | float = 4,
) -> InfiniteKernels:
    """Limits of wide networks of the model's architecture, one output; the model's weights are not read.

    ``ntk`` is the limit of ``empirical_ntk / model.kernel_scale`` (one diagonal block, or the trace form)
    and ``nngp`` that of the output covariance; for mup, whose outputs vanish as 1/sqrt(width), of
    sqrt(width) times the outputs, so that mup and ntk agree. In the standard parameterisation a layer's
    share of the NTK is its fan-in over ``model.width`` (a bias's 1/width): these ratios are kept at the
    model's own width, since the input layer's is not small, and so the result depends on it.

    Exact for MLP and CNN, with the model's biases, strides, zero padding and readout.
    For ReLU inputs whose squared sine is below 1e-14 count as parallel, where rounding would cost half the
    digits.

    Cost: about 20 elementwise operations (tanh: 350 times the largest variance) per layer, pixel and pair of
    inputs, half for x2=None.
    Memory: two results, the inputs' windows, and some 20 MB for a tile of pairs.

    A pooled readout needs every pair of pixels: S^2 in place of S of them, at the same memory.

    Raises ``ValueError`` for other models, for inputs that do not fit, and, after the first tile, where this
    machine would take longer than ``max_hours``.
    """
    network = _supported(model)
    windows1, variances1 = _prepare(network, x1)
    windows2, variances2 = (windows1, variances1) if x2 is None else _prepare(network, x2)
    largest = [max(float(q1.max()), float(q2.max())) for q1, q2 in zip(variances1, variances2, strict=True)]
    dual = DUALS[network.activation]
    (pixels, rows, _), columns = windows1.shape, windows2.shape[1]
    recursion = _pooled if isinstance(network, CNN) and network.pooled else _recursion
    nngp, ntk = (torch.empty(rows, columns, dtype=torch.float64, device=x1.device) for _ in range(2))
    side = max(1, int((TILE_NUMBERS / pixels) ** 0.5))
    tiles_left = math.ceil(rows / side) * math.ceil(columns / side) / (2 if x2 is None else 1)
    started = time.perf_counter()
    for start in range(0, rows, side):
        p = slice(start, start + side)
        left = [dual.prepare(q1[:, p, None], most) for q1, most in zip(variances1, largest, strict=True)]
        for other in range(start if x2 is None else 0, columns, side):
            q = slice(other, other + side)
            right = [dual.prepare(q2[:, None, q], most) for q2, most in zip(variances2, largest, strict=True)]
            tiles = recursion(network, windows1[:, p], windows2[:, q], left, right)
            hours = tiles_left * (time.perf_counter() - started) / 3600
            if start == other == 0 and hours > max_hours:
                raise ValueError(
                    f"the infinite-width kernels of {rows} x {columns} inputs would take about {hours:.0f} hours, "
                    f"more than max_hours={max_hours:g}; pass fewer inputs, larger strides, or max_hours"
                )
            for kernel, tile in zip((nngp, ntk), tiles, strict=True):
                if x2 is None:
                    kernel[q, p] = tile.T
                kernel[p, q] = tile.triu() + tile.triu(1).T if x2 is None and p == q else tile
    return InfiniteKernels(nngp, ntk)


TILE_NUMBERS = 2**18  # pixels times pairs in a tile: 2 MB an array, so that the recursion runs in cache


def _supported(model: nn.Module) -> Network:
    if not isinstance(model, MLP | CNN):
        raise ValueError(f"infinite-width kernels exist for MLP and CNN, got {type(model).__name__}; use empirical_ntk")
    return model


def _prepare(network: Network, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Windows of the input (s, n, k), and the variances of every hidden layer."""
    require_finite(x)
    network.require_input(x)
    first = network.layers[0]
    shape = network.in_shape if isinstance(first, ScaledConv2d) else (-1,)
    images = x.reshape(len(x), *shape).double()
    if isinstance(first, ScaledConv2d):
        seen = Geometry.of(first).patches(images).permute(2, 0, 1).contiguous()
    else:
        seen = images[None]
    return seen, _variances(network, (seen * seen).sum(2))


def _variances(network: Network, squared: Tensor) -> list[Tensor]:
    """``q``, the variance of the preactivations of every hidden layer, each (s, n)."""
    dual = DUALS[network.activation]
    first, *later = network.layers[:-1]
    variances = [_covariance_weight(first) * squared + _bias_variance(first)]
    for i, layer in enumerate(later):
        q = variances[-1]
        mean = dual(q, q, q)[0]
        if isinstance(network, CNN):
            mean = _window_mean(mean, network.pixels[i], network.strides[i + 1])
        variances.append(layer.fan_in * _covariance_weight(layer) * mean + _bias_variance(layer))
    return variances


def _covariance_weight(layer: ScaledLinear | ScaledConv2d) -> float:
    return (layer.weight_scale * layer.weight_std) ** 2


def _bias_variance(layer: ScaledLinear | ScaledConv2d) -> float:
    return (layer.bias_scale * layer.bias_std) ** 2


def _recursion(
    network: Network, left: Tensor, right: Tensor, prepared1: list[Tensor], prepared2: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Both kernels of a tile of pairs, from their windows (s, n, k), (s, m, k) and prepared variances."""
    shapes = network.pixels if isinstance(network, CNN) else [(1, 1)] * network.depth
    value, passed = _hidden(network, shapes, left @ right.transpose(1, 2), prepared1, prepared2)
    return _readout(network, value.mean(0), passed.mean(0))


def _pooled(
    network: Network, left: Tensor, right: Tensor, prepared1: list[Tensor], prepared2: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same with a mean over the last pixels, to which every pair of pixels (s, t) contributes.

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
            values, slopes = _hidden(network, [place.shape for place in places], products, here1, here2)
            value += values.sum(0)
            passed += slopes.sum(0)
    pairs = (height * width) ** 2
    return _readout(network, value / pairs, passed / pairs)


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
    shapes: list[tuple[int, int]],
    products: Tensor,
    prepared1: list[Tensor],
    prepared2: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The last layer's ``D(K)`` and ``D'(K) T``, (s, n, m), from the first windows' products."""
    first, *later = network.layers[:-1]
    strides = network.strides[1:] if isinstance(network, CNN) else ()
    covariance = products * _covariance_weight(first) + _bias_variance(first)
    tangent = products * first.weight_scale**2 + first.bias_scale**2
    for i, layer in enumerate(later):
        value, passed = _activate(network.activation, covariance, tangent, prepared1[i], prepared2[i])
        if strides:
            value, passed = (_window_mean(v, shapes[i], strides[i]) for v in (value, passed))
        covariance, tangent = _next(layer, value, passed)
    return _activate(network.activation, covariance, tangent, prepared1[-1], prepared2[-1])


def _activate(
    activation: str, covariance: Tensor, tangent: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor]:
    """``D(K)`` and ``D'(K) T``; on the CPU in place of both."""
    if covariance.device.type == "cpu":
        arrays = (covariance, tangent, *(v.view(-1, len(covariance), v.shape[-2:].numel()) for v in (left, right)))
        compiled().ACTIVATIONS[activation](*(v.contiguous().numpy() for v in arrays))
        return covariance, tangent
    value, derivative = DUALS[activation].pair(covariance, left, right)
    return value, derivative.mul_(tangent)


@cache
def compiled() -> ModuleType:
    """Imported where it is first needed: Numba takes half a second."""
    return import_module("ridgescope.models.kernels.compiled")


def _next(layer: ScaledLinear | ScaledConv2d, value: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance and tangent kernel of a layer's outputs, from the averages over what its neurons read."""
    weight = layer.fan_in * _covariance_weight(layer)
    covariance = value * weight + _bias_variance(layer)
    tangent = passed.mul_(weight).add_(value, alpha=layer.fan_in * layer.weight_scale**2).add_(layer.bias_scale**2)
    return covariance, tangent


def _readout(network: Network, value: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    covariance, tangent = _next(network.readout, value, passed)
    # kernel_scale is 1/width for mup: its outputs have that variance too
    scale = network.kernel_scale if network.parameterisation == "mup" else 1.0
    return covariance / scale, tangent / network.kernel_scale


def _window_mean(v: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
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
