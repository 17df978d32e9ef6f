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

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels import infinite_cpu, infinite_torch
from ridgescope.models.kernels.checks import require_finite
from ridgescope.models.kernels.recursion import steps, variances, window_sum
from ridgescope.models.mlp import MLP
from ridgescope.models.network import Network


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

    Cost on a CPU: about 5 ns of one thread per layer, pair of inputs and pixel (tanh: that of 350 products times the
    largest variance), and per layer, pair and pair of pixels with a pooled readout; half for x2=None. All of torch's
    threads are used; the bits depend on them only through an MLP's first matrix product.
    Memory: two results, and on either side what is prepared of a tile's inputs, 32 MB or that of 8 inputs.

    A pooled readout needs every pair of pixels: S^2 in place of S of them, at the same memory.

    Raises ``ValueError`` for other models, for inputs that do not fit, and, after the first tile, where this
    machine would take longer than ``max_hours``.
    """
    network = _supported(model)
    engine = infinite_cpu if x1.device.type == "cpu" else infinite_torch
    images1, variances1 = _prepare(network, x1)
    images2, variances2 = (images1, variances1) if x2 is None else _prepare(network, x2)
    largest = [max(float(q1.max()), float(q2.max())) for q1, q2 in zip(variances1, variances2, strict=True)]
    rows, columns = len(images1), len(images2)
    nngp, ntk = (torch.empty(rows, columns, dtype=torch.float64, device=x1.device) for _ in range(2))
    side, readout = engine.side(network, largest), steps(network)[-1]
    # kernel_scale is 1/width for mup: its outputs have that variance too
    scale = network.kernel_scale if network.parameterisation == "mup" else 1.0
    started = time.perf_counter()
    for start in range(0, rows, side):
        p = slice(start, start + side)
        left = engine.inputs(network, images1[p], [q[:, p] for q in variances1], largest)
        for other in range(start if x2 is None else 0, columns, side):
            q = slice(other, other + side)
            upper = x2 is None and p == q
            right = left if upper else engine.inputs(network, images2[q], [v[:, q] for v in variances2], largest)
            value, passed = engine.tile(network, left, right, upper=upper)
            hours = rows * columns / value.numel() * (time.perf_counter() - started) / 3600
            if start == other == 0 and hours > max_hours:
                raise ValueError(
                    f"the infinite-width kernels of {rows} x {columns} inputs would take about {hours:.0f} hours, "
                    f"more than max_hours={max_hours:g}; pass fewer inputs, larger strides, or max_hours"
                )
            covariance, tangent = readout(value, passed)
            for kernel, part in zip((nngp, ntk), (covariance / scale, tangent / network.kernel_scale), strict=True):
                if x2 is None:
                    kernel[q, p] = part.T
                kernel[p, q] = part.triu() + part.triu(1).T if upper else part
    return InfiniteKernels(nngp, ntk)


def _supported(model: nn.Module) -> Network:
    if not isinstance(model, MLP | CNN):
        raise ValueError(f"infinite-width kernels exist for MLP and CNN, got {type(model).__name__}; use empirical_ntk")
    return model


def _prepare(network: Network, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Images (n, ...), float64, and the variances (s, n) of every hidden layer's preactivations."""
    require_finite(x)
    network.require_input(x)
    if not isinstance(network, CNN):
        images = x.flatten(1).double()
        return images, variances(network, images.square().sum(1)[None])
    _, height, width = network.in_shape
    images = x.reshape(len(x), *network.in_shape).double()
    squared = images.square().sum(1).flatten(1).T
    return images, variances(network, window_sum(squared, (height, width), network.strides[0]))
