"""The infinite-width recursion of an MLP, all layers, for a tile of pairs of inputs at a time, on the CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ridgescope.models.kernels.infinite.activated import CODES, PREPARED, activate
from ridgescope.models.kernels.infinite.compiled import compiled
from ridgescope.models.kernels.infinite.tasks import Task
from ridgescope.models.kernels.infinite.threads import Workers

SIDE = 128  # inputs of a tile: large enough for the matrix product, small enough for the cache

Array = np.ndarray[Any, np.dtype[np.float64]]


def fill(task: Task, workers: Workers) -> None:
    activation, prepare = CODES[task.network.activation], PREPARED[task.network.activation]
    left, right = (prepare(torch.stack([q[0] for q in side.variances])).numpy() for side in (task.one, task.two))
    affine = np.array([layer.row() for layer in task.affine])
    columns = task.two.values.T
    layers(activation, np.empty((0, 0)), np.empty((0, 0)), left, right, 0, 0, affine)  # compiles

    def tile(p: slice, q: slice) -> tuple[Tensor, Tensor]:
        covariance = task.one.values[p] @ columns[:, q]
        tangent = torch.empty_like(covariance)
        layers(activation, covariance.numpy(), tangent.numpy(), left, right, p.start, q.start, affine)
        return covariance, tangent

    task.in_tiles(workers, SIDE, tile)


@compiled
def layers(
    activation: int, k: Array, tangent: Array, left: Array, right: Array, above: int, before: int, affine: Array
) -> None:
    """Both kernels of the outputs from the products of inputs in ``k``, in place; left and right (layers, n)."""
    other = np.empty(k.shape[1])
    for r in range(k.shape[0]):
        here, passed = k[r], tangent[r]
        _first(here, passed, affine[0])
        for layer in range(1, affine.shape[0]):
            other[:] = left[layer - 1, above + r]
            activate(activation, here, passed, other, right[layer - 1, before : before + k.shape[1]])
            _next(here, passed, affine[layer])


@compiled
def _first(k: Array, tangent: Array, affine: Array) -> None:
    weight, bias, own, own_bias = affine[0], affine[1], affine[3], affine[4]
    for i in range(k.shape[0]):
        product = k[i]
        k[i] = weight * product + bias
        tangent[i] = own * product + own_bias


@compiled
def _next(k: Array, tangent: Array, affine: Array) -> None:
    weight, bias, slope, own, own_bias = affine[0], affine[1], affine[2], affine[3], affine[4]
    for i in range(k.shape[0]):
        value = k[i]
        k[i] = weight * value + bias
        tangent[i] = slope * tangent[i] + own * value + own_bias
