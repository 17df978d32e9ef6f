"""The kernels of the infinitely wide network: NNGP (covariance of its outputs) and NTK.

Layer by layer, with the activation's dual ``D`` and its derivative ``D'`` (`ridgescope.models.kernels.duals`)
and A the average over what a neuron reads (all neurons; in a convolution also the 3x3 window, zeros outside),

    K_1 = s^2 A[x x'] + s_b^2,                T_1 = w A[x x'] + b
    K_(l+1) = s^2 A[D(K_l)] + s_b^2,          T_(l+1) = w A[D(K_l)] + b + s^2 A[D'(K_l) T_l]

For parameters drawn at unit variance (ntk, mup) ``w = s^2`` and ``b = s_b^2``. With a flattened readout only
covariances of a pixel with itself, in two images, ever enter; with a pooled one those of all pairs of pixels.

Sources: Lee et al. 2018, arXiv:1711.00165; Jacot et al. 2018, arXiv:1806.07572; Arora et al. 2019,
arXiv:1904.11955 for convolutions.

Axes: s pixels (1 in an MLP); n, m inputs; k numbers of an input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.checks import require_finite
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.kernels.infinite import layered
from ridgescope.models.kernels.infinite.affine import Affine, affine_layers
from ridgescope.models.kernels.infinite.layered import window_mean
from ridgescope.models.kernels.infinite.tasks import Inputs, Task
from ridgescope.models.kernels.infinite.threads import Workers, one_thread
from ridgescope.models.kernels.memory import reuse_freed
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

    Cost: about 40 multiply-adds (tanh: 350 times the largest variance) per layer, pixel and pair of inputs, half for
    x2=None: 3 to 4 ns on one thread with AVX-512, shared by torch's threads. The bits do not depend on their number.
    Memory: two results, the inputs with one number per layer and pixel, and for each thread a few MB.

    A pooled readout needs every pair of pixels: S^2 in place of S of them, at the same memory.

    Raises ``ValueError`` for other models, for inputs that do not fit, and, after a first part of the work, where
    this machine would take longer than ``max_hours``.
    """
    network = _supported(model)
    with one_thread() as threads:
        rows, columns = len(x1), len(x1 if x2 is None else x2)
        sides = x1.numel() + (0 if x2 is None else x2.numel())
        reuse_freed(8.0 * (2 * rows * columns + (network.depth + 1) * sides), x1.device)
        affine = affine_layers(network)
        one = _prepare(network, affine, x1)
        two = one if x2 is None else _prepare(network, affine, x2)
        nngp, ntk = (torch.empty(rows, columns, dtype=torch.float64, device=x1.device) for _ in range(2))
        workers = Workers(threads if x1.device.type == "cpu" else 1, partial(_require_time, rows, columns, max_hours))
        _way(network, x1)(Task(network, affine, one, two, nngp, ntk), workers)
    return InfiniteKernels(nngp, ntk)


def _supported(model: nn.Module) -> Network:
    if not isinstance(model, MLP | CNN):
        raise ValueError(f"infinite-width kernels exist for MLP and CNN, got {type(model).__name__}; use empirical_ntk")
    return model


def _compiled(activation: str, x: Tensor) -> bool:
    """Whether there are compiled functions for it, to be imported where first needed: Numba takes half a second."""
    return x.device.type == "cpu" and activation != "tanh"


def _way(network: Network, x: Tensor) -> Callable[[Task, Workers], None]:
    if not _compiled(network.activation, x):
        return layered.fill
    name = "images" if isinstance(network, CNN) else "dense"
    fill: Callable[[Task, Workers], None] = import_module(f"ridgescope.models.kernels.infinite.{name}").fill
    return fill


def _require_time(rows: int, columns: int, max_hours: int | float, seconds: float) -> None:
    hours = seconds / 3600
    if hours > max_hours:
        raise ValueError(
            f"the infinite-width kernels of {rows} x {columns} inputs would take about {hours:.0f} hours, "
            f"more than max_hours={max_hours:g}; pass fewer inputs, larger strides, or max_hours"
        )


def _prepare(network: Network, affine: list[Affine], x: Tensor) -> Inputs:
    require_finite(x)
    network.require_input(x)
    values = x.reshape(len(x), -1).double()
    if isinstance(network, CNN):
        channels, *shape = network.in_shape
        squares = (values * values).unflatten(1, (channels, -1)).sum(1).T
        squared = 9 * window_mean(squares, (shape[0], shape[1]), network.strides[0])
    else:
        squared = torch.linalg.vecdot(values, values)[None]
    return Inputs(values.contiguous(), _variances(network, affine, squared))


def _variances(network: Network, affine: list[Affine], squared: Tensor) -> list[Tensor]:
    """``q``, the variance of the preactivations of every hidden layer, each (s, n)."""
    variances = [affine[0].covariance(squared)]
    for i, layer in enumerate(affine[1:-1]):
        mean = _of_variances(network.activation, variances[-1])
        if isinstance(network, CNN):
            mean = window_mean(mean, network.pixels[i], network.strides[i + 1])
        variances.append(layer.covariance(mean))
    return variances


def _of_variances(activation: str, q: Tensor) -> Tensor:
    if _compiled(activation, q):
        values: Tensor = import_module("ridgescope.models.kernels.infinite.activated").of_variances(activation, q)
        return values
    return DUALS[activation](q, q, q)[0]
