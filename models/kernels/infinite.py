"""The kernels of the infinitely wide network: NNGP (covariance of its outputs) and NTK.

Layer by layer, with the activation's dual ``D`` and its derivative ``D'`` (`ridgescope.models.kernels.duals`)
and A the average over what a neuron reads (all neurons; in a convolution also the 3x3 window, zeros outside),

    K_1 = s^2 A[x x'] + s_b^2,                T_1 = w A[x x'] + b
    K_(l+1) = s^2 A[D(K_l)] + s_b^2,          T_(l+1) = w A[D(K_l)] + b + s^2 A[D'(K_l) T_l]

For parameters drawn at unit variance (ntk, mup) ``w = s^2`` and ``b = s_b^2``. With a flattened readout only
covariances of a pixel with itself, in two images, ever enter.

Sources: Lee et al. 2018, arXiv:1711.00165; Jacot et al. 2018, arXiv:1806.07572; Arora et al. 2019,
arXiv:1904.11955 for convolutions.

Axes: s pixels (1 in an MLP); n, m inputs; k entries of a window of the input.
"""

from collections.abc import Callable
from dataclasses import dataclass

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

Average = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InfiniteKernels:
    """Both kernels (n, m), float64, in the units of `infinite_ntk`."""

    nngp: Float64[Tensor, "n m"]
    ntk: Float64[Tensor, "n m"]


def infinite_ntk(
    model: nn.Module,
    x1: Float[Tensor, " n *shape"],
    x2: Float[Tensor, " m *shape"] | None = None,
) -> InfiniteKernels:
    """Limits of wide networks of the model's architecture, one output; the model's weights are not read.

    ``ntk`` is the limit of ``empirical_ntk / model.kernel_scale`` (one diagonal block, or the trace form)
    and ``nngp`` that of the output covariance; for mup, whose outputs vanish as 1/sqrt(width), of
    sqrt(width) times the outputs, so that mup and ntk agree. In the standard parameterisation a layer's
    share of the NTK is its fan-in over ``model.width`` (a bias's 1/width): these ratios are kept at the
    model's own width, since the input layer's is not small, and so the result depends on it.

    Exact for MLP and for CNN with ``readout="flatten"``, with the model's biases, strides and zero padding.
    For ReLU inputs whose squared sine is below 1e-14 count as parallel, where rounding would cost half the
    digits.

    Cost: about 20 elementwise operations (tanh: 350 times the largest variance) per layer, pixel and pair of
    inputs, half for x2=None.
    Memory: two results, the inputs' windows, and some 20 MB for a tile of pairs.

    Raises ``ValueError`` for other models, for ``readout="pool"`` and for inputs that do not fit.
    """
    network = _supported(model)
    windows1, variances1 = _prepare(network, x1)
    windows2, variances2 = (windows1, variances1) if x2 is None else _prepare(network, x2)
    largest = [max(float(q1.max()), float(q2.max())) for q1, q2 in zip(variances1, variances2, strict=True)]
    dual = DUALS[network.activation]
    (pixels, rows, _), columns = windows1.shape, windows2.shape[1]
    nngp, ntk = (torch.empty(rows, columns, dtype=torch.float64, device=x1.device) for _ in range(2))
    side = max(1, int((TILE_NUMBERS / pixels) ** 0.5))
    for start in range(0, rows, side):
        p = slice(start, start + side)
        left = [dual.prepare(q1[:, p, None], most) for q1, most in zip(variances1, largest, strict=True)]
        for other in range(start if x2 is None else 0, columns, side):
            q = slice(other, other + side)
            right = [dual.prepare(q2[:, None, q], most) for q2, most in zip(variances2, largest, strict=True)]
            products = windows1[:, p] @ windows2[:, q].transpose(1, 2)
            for kernel, tile in zip((nngp, ntk), _recursion(network, products, left, right), strict=True):
                if x2 is None:
                    kernel[q, p] = tile.T
                kernel[p, q] = tile.triu() + tile.triu(1).T if x2 is None and p == q else tile
    return InfiniteKernels(nngp, ntk)


TILE_NUMBERS = 2**18  # pixels times pairs in a tile: 2 MB an array, so that the recursion runs in cache


def _supported(model: nn.Module) -> Network:
    if isinstance(model, CNN) and model.pooled:
        raise ValueError(
            'the infinite-width kernel of readout="pool" is not available yet; '
            'use readout="flatten", or the finite kernels of wide networks'
        )
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
    for layer, average in zip(later, _averages(network), strict=False):
        q = variances[-1]
        mean = average(dual(q, q, q)[0])
        variances.append(layer.fan_in * _covariance_weight(layer) * mean + _bias_variance(layer))
    return variances


def _covariance_weight(layer: ScaledLinear | ScaledConv2d) -> float:
    return (layer.weight_scale * layer.weight_std) ** 2


def _bias_variance(layer: ScaledLinear | ScaledConv2d) -> float:
    return (layer.bias_scale * layer.bias_std) ** 2


def _recursion(network: Network, products: Tensor, left: list[Tensor], right: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Both kernels of a tile of pairs, from their windows' products (s, n, m) and prepared variances."""
    dual = DUALS[network.activation]
    first, *later = network.layers
    covariance = products * _covariance_weight(first) + _bias_variance(first)
    tangent = products * first.weight_scale**2 + first.bias_scale**2
    for layer, average, q1, q2 in zip(later, _averages(network), left, right, strict=True):
        value, derivative = dual.pair(covariance, q1, q2)
        mean = average(value).mul_(layer.fan_in)
        passed = average(derivative.mul_(tangent)).mul_(layer.fan_in * _covariance_weight(layer))
        covariance = mean * _covariance_weight(layer) + _bias_variance(layer)
        tangent = passed.add_(mean, alpha=layer.weight_scale**2).add_(layer.bias_scale**2)
    # kernel_scale is 1/width for mup: its outputs have that variance too
    scale = network.kernel_scale if network.parameterisation == "mup" else 1.0
    return covariance[0] / scale, tangent[0] / network.kernel_scale


def _averages(network: Network) -> list[Average]:
    """What each layer after the first averages over, (s, ...) -> (s', ...); one pixel at the readout."""
    if isinstance(network, CNN):
        later = zip(network.strides[1:], network.pixels, strict=False)
        return [_window_mean(shape, stride) for stride, shape in later] + [lambda v: v.mean(0, keepdim=True)]
    return [lambda v: v] * network.depth


def _window_mean(shape: tuple[int, int], stride: int) -> Average:
    """Mean over 3x3 windows of an image of this shape with zeros around it, one axis after the other."""

    def average(v: Tensor) -> Tensor:
        image = v.unflatten(0, shape)
        return _window_sum(_window_sum(image, 0, stride), 1, stride).flatten(0, 1).mul_(1 / 9)

    return average


def _window_sum(image: Tensor, axis: int, stride: int) -> Tensor:
    """``sum_(d=-1,0,1) image[stride i + d]`` along an axis."""
    source = image.movedim(axis, 0)
    total = source[::stride].clone()
    after = source[1::stride]
    total[: len(after)] += after
    total[1:] += source[stride - 1 :: stride][: len(total) - 1]
    return total.movedim(0, axis)
