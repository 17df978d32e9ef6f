"""The infinite-width recursion of an MLP, all layers, for a tile of pairs of inputs at a time, on the CPU.

The products of inputs are written where the first kernel will be, and the sweep over the layers runs there in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from ridgescope.models.kernels.infinite.activated import CODES, PREPARED, activate
from ridgescope.models.kernels.infinite.compiled import compiled
from ridgescope.models.kernels.infinite.tasks import Slices, Task
from ridgescope.models.kernels.infinite.threads import Workers

SIDE = 200  # inputs of a tile: large enough for the matrix product, small enough for the cache
BLOCK = 8  # numbers in a line of the cache

Array = np.ndarray[Any, np.dtype[np.float64]]


def fill(task: Task, workers: Workers) -> None:
    activation, prepare = CODES[task.network.activation], PREPARED[task.network.activation]
    left, right = (prepare(torch.stack([q[0] for q in side.variances])).numpy() for side in (task.one, task.two))
    affine = np.array([layer.row() for layer in task.affine])
    rows, columns = task.one.values.numpy(), task.two.values.numpy()
    nngp, ntk = task.nngp.numpy(), task.ntk.numpy()

    def tile(place: Slices) -> None:
        p, q = place
        np.matmul(rows[p], columns[q].T, out=nngp[p, q])
        layers(activation, nngp, ntk, left, right, affine, p.start, p.stop, q.start, q.stop, task.symmetric)

    layers(activation, nngp, ntk, left, right, affine, 0, 0, 0, 0, task.symmetric)  # compiles
    with _one_blas_thread():
        workers.for_each(tile, task.tiles(SIDE))


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """NumPy's matrix library on one thread in each of ours; on AMD processors it is 1.35 times as fast as torch's."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@compiled
def layers(
    activation: int,
    nngp: Array,
    ntk: Array,
    left: Array,
    right: Array,
    affine: Array,
    top: int,
    bottom: int,
    first: int,
    last: int,
    symmetric: bool,
) -> None:
    """Both kernels of the outputs from the products of inputs in ``nngp``, in place, for one tile.

    ``left``, ``right``: (layers, n). Of a symmetric kernel the tile's mirror image is written too.
    """
    other = np.empty(last - first)
    for r in range(top, bottom):
        start = max(first, r) if symmetric else first
        here, passed = nngp[r][start:last], ntk[r][start:last]
        _first(here, passed, affine[0])
        for layer in range(1, affine.shape[0]):
            other[:] = left[layer - 1, r]
            activate(activation, here, passed, other[: last - start], right[layer - 1][start:last])
            _next(here, passed, affine[layer])
    if symmetric:
        _mirror(nngp, top, bottom, first, last)
        _mirror(ntk, top, bottom, first, last)


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


@compiled
def _mirror(kernel: Array, top: int, bottom: int, first: int, last: int) -> None:
    """Numbers above the diagonal, of one tile, to below it, in blocks whose rows and columns are whole lines."""
    for block in range(first, last, BLOCK):
        for p in range(top, bottom, BLOCK):
            for j in range(block, min(block + BLOCK, last)):
                target = kernel[j]
                for i in range(p, min(p + BLOCK, bottom, j)):
                    target[i] = kernel[i, j]
