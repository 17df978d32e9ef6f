"""The infinite-width kernels of a CNN on the CPU: which blocks of pairs of images `sweep` is given."""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.infinite.activated import CODES, PREPARED
from ridgescope.models.kernels.infinite.sweep import sweep
from ridgescope.models.kernels.infinite.tasks import Inputs, Task
from ridgescope.models.kernels.infinite.threads import Workers

ROW = 512  # numbers in a row of pixels: far more than its call costs, and few enough for the fastest cache
STRIP_NUMBERS = 2**20  # sums that are held at once: 16 MB
PART_NUMBERS = 2**18  # pairs of images and of pixels, in all layers, between two looks at the clock: about 2 ms


def fill(task: Task, workers: Workers) -> None:
    network = task.network
    assert isinstance(network, CNN)
    data1 = _data(task.one, network.activation)
    data2 = data1 if task.symmetric else _data(task.two, network.activation)
    shapes = [network.in_shape[1:], *network.pixels]
    steps = [math.prod(network.strides[level:]) for level in range(network.depth + 1)]
    levels = np.array([(*shape, s, step) for shape, s, step in zip(shapes, (*network.strides, 1), steps, strict=True)])
    affine = np.array([layer.row(1.0 if i == 0 else 9.0) for i, layer in enumerate(task.affine[:-1])])
    height, width = shapes[-1] if network.pooled else (1, 1)
    turns = np.array([height, width])

    rows, columns = task.nngp.shape
    all_pairs = rows * (rows + 1) // 2 if task.symmetric else rows * columns
    lanes = _lanes(shapes[0][1], all_pairs)

    def units(part: tuple[int, int], pairs: Tensor, sums: Tensor) -> None:
        sweep(
            CODES[network.activation], lanes, data1, data2, pairs.numpy(), network.in_shape[0], levels, affine, turns,
            *part, sums[0].numpy(), sums[1].numpy(),
        )  # fmt: skip

    units((0, 0), torch.empty(2, 0, dtype=torch.int64), torch.empty(2, height, 0, dtype=torch.float64))  # compiles
    one_unit = lanes * width * sum(math.prod(shape) for shape in shapes)
    size = max(1, PART_NUMBERS // one_unit)
    strip = max(1, STRIP_NUMBERS // (columns * height))
    contributions = math.prod(shapes[-1]) * height * width
    for start in range(0, rows, strip):
        i, j = _strip(start, min(start + strip, rows), columns, task.symmetric)
        count = len(i)
        pairs = torch.stack([i, j])
        pairs = torch.cat([pairs, pairs[:, -1:].expand(2, -count % lanes)], dim=1).contiguous()
        sums = torch.empty(2, height, count, dtype=torch.float64)
        parts = _parts(pairs.shape[1] // lanes * height, size)
        work = partial(units, pairs=pairs, sums=sums)
        workers.for_each(work, parts, of=math.ceil(len(parts) * all_pairs / count))
        value, passed = sums.sum(1) / contributions
        task.nngp[i, j] = task.affine[-1].covariance(value)
        task.ntk[i, j] = task.affine[-1].tangent_kernel(value, passed)
        if task.symmetric:
            for kernel in (task.nngp, task.ntk):
                kernel[j, i] = kernel[i, j]


def _data(side: Inputs, activation: str) -> np.ndarray:
    """Each image's channels and, layer by layer, what its variances are prepared to, in one row."""
    return torch.cat([side.values, *(PREPARED[activation](q).T for q in side.variances)], dim=1).numpy()


def _lanes(width: int, pairs: int) -> int:
    """Pairs side by side: enough for a row of ROW numbers, in whole vectors of 8, but not many more than there are."""
    return 8 * max(1, min(round(ROW / (8 * width)), pairs // 64))


def _strip(start: int, stop: int, columns: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs with rows from start to stop, of a symmetric kernel the upper triangle."""
    if symmetric:
        i, j = torch.triu_indices(stop - start, columns - start)
        return i + start, j + start
    i, j = torch.cartesian_prod(torch.arange(start, stop), torch.arange(columns)).T
    return i, j


def _parts(units: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, units)) for first in range(0, units, size)]
