"""Tiles of the infinite-width kernels on the CPU: compiled blocks of pairs, on all of torch's threads.

Each pair of inputs is computed by one thread in one order, so the bits depend neither on the number of threads nor on
the tiles. Axes: s pixels (1 in an MLP); n, m inputs; q all numbers of one input: its pixels, and what is prepared of
the variances of every hidden layer.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ridgescope.models.cnn import CNN
from ridgescope.models.kernels.duals import DUALS
from ridgescope.models.kernels.recursion import steps
from ridgescope.models.network import Network

TILE_WORK = 2**27  # pairs of pixels in a tile: about a second on one thread, for Ctrl-C and the estimate of hours
TILE_PAIRS = 2**16  # pairs of inputs in a tile
TILE_BYTES = 2**25  # of what is prepared on one side
BLOCK = 4096  # pixels times pairs in a block: each array is 32 kB, all of a small network's are in the cache
BLOCKS = 4  # of a convolution in one task
ROWS = 16  # of an MLP's tile in one task


@dataclass(frozen=True)
class Inputs:
    """Pixels (n, ...), and what the blocks read: of every image (n, q), and in groups of 8, the last one repeated,
    (g, q, 8); for an MLP in one group (q, n)."""

    pixels: Tensor
    images: np.ndarray
    groups: np.ndarray
    planes: np.ndarray  # how many numbers of a pixel each layer has in q


def side(network: Network, largest: Sequence[float]) -> int:
    """Inputs on one side of a tile, a multiple of the group; ``largest``: the variance of every hidden layer."""
    lanes = compiled().LANES
    planes = [len(_prepared(network.activation, torch.tensor([most]).double(), most)) for most in largest]
    if not isinstance(network, CNN):
        numbers, pairs = sum(planes), float(TILE_PAIRS)
    else:
        sizes = [math.prod(shape) for shape in (network.in_shape, *network.pixels)]
        numbers = sum(size * plane for size, plane in zip(sizes, [1, *planes], strict=True))
        pixels = sizes[1] ** 2 if network.pooled else sizes[1]
        pairs = min(TILE_PAIRS, TILE_WORK / pixels)
    return max(lanes, int(min(math.sqrt(pairs), TILE_BYTES / (8 * numbers))) // lanes * lanes)


def inputs(network: Network, images: Tensor, variances: Sequence[Tensor], largest: Sequence[float]) -> Inputs:
    """Of images (n, ...) and the variances (s, n) of every hidden layer, ``largest`` those of all inputs."""
    lanes = compiled().LANES
    prepared = [_prepared(network.activation, q.T, most) for q, most in zip(variances, largest, strict=True)]
    planes = [len(numbers) for numbers in prepared]
    parts = [numbers.movedim(0, 1).flatten(1) for numbers in prepared]
    if isinstance(network, CNN):
        planes.insert(0, images.shape[1])
        parts.insert(0, images.flatten(1))
        numbers = torch.cat(parts, dim=1)
        padded = numbers[torch.arange(-(-len(numbers) // lanes) * lanes).clamp_max(len(numbers) - 1)]
        groups = padded.unflatten(0, (-1, lanes)).transpose(1, 2)
    else:
        numbers, groups = torch.cat(parts, dim=1), torch.cat(parts, dim=1).T
    return Inputs(images, numbers.contiguous().numpy(), groups.contiguous().numpy(), np.array(planes))


def tile(network: Network, left: Inputs, right: Inputs, *, upper: bool) -> tuple[Tensor, Tensor]:
    """The averages of ``D(K)`` and ``D'(K) T`` (n, m) that the readout sees; ``upper``: left and right are the same,
    and what lies below the diagonal need not be computed."""
    if isinstance(network, CNN):
        return _convolutional(network, left, right, upper)
    value = left.pixels.flatten(1) @ right.pixels.flatten(1).T
    passed = torch.empty_like(value)
    code, weights = compiled().CODES[network.activation], np.array(steps(network)[:-1])

    def rows(start: int) -> None:
        p = slice(start, start + ROWS)
        arrays = value[p].numpy(), passed[p].numpy(), left.images[p], right.groups
        compiled().fully_connected(code, *arrays, left.planes, weights)

    _together(rows, range(0, len(value), ROWS))
    return value, passed


def _convolutional(network: CNN, left: Inputs, right: Inputs, upper: bool) -> tuple[Tensor, Tensor]:
    lanes, code = compiled().LANES, compiled().CODES[network.activation]
    shapes, strides = np.array([network.in_shape[1:], *network.pixels]), np.array(network.strides)
    # averages over windows: a layer's fan-in is of nine sums
    weights = np.array(steps(network)[:-1])
    weights[1:, [0, 2, 3]] /= 9
    height, width = network.pixels[-1]
    if network.pooled:
        grid = np.mgrid[1 - height : height, 1 - width : width]
        moves, number = np.ascontiguousarray(grid.reshape(2, -1).T), (height * width) ** 2
    else:
        moves, number = np.zeros((1, 2), dtype=np.int64), height * width
    images, groups = len(left.images), len(right.groups)
    units = np.array([(p, g) for p in range(images) for g in range(groups) if not upper or (g + 1) * lanes > p])
    found = np.zeros((2, images, groups, lanes))
    size = max(1, BLOCK // (lanes * math.prod(network.in_shape[1:])))

    def blocks(start: int) -> None:
        chosen = units[start : start + size * BLOCKS]
        value, slope = np.empty((2, len(chosen), lanes))
        layout = chosen, size, shapes, strides, left.planes, moves, weights
        compiled().convolutions(code, left.images, right.groups, *layout, value, slope)
        found[0, chosen[:, 0], chosen[:, 1]] = value
        found[1, chosen[:, 0], chosen[:, 1]] = slope

    _together(blocks, range(0, len(units), size * BLOCKS))
    value, passed = torch.from_numpy(found).flatten(2)[:, :, : len(right.pixels)] / number
    return value, passed


def _together(task: Callable[[int], None], starts: range) -> None:
    """All tasks, on torch's threads; interrupted, those not begun are dropped."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        try:
            for future in [pool.submit(task, start) for start in starts]:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepared(activation: str, q: Tensor, most: float) -> Tensor:
    """What the compiled activations read of variances (...), stacked in front."""
    known = DUALS[activation].prepare(q, most)
    if activation == "relu":
        return torch.stack([known, 1 / known])
    if activation == "erf":
        return known.rsqrt()[None]
    return torch.stack([known, (1 + known).rsqrt()]) if activation == "gelu" else known


@cache
def compiled() -> ModuleType:
    """Imported where it is first needed: Numba takes half a second."""
    return import_module("ridgescope.models.kernels.compiled")
