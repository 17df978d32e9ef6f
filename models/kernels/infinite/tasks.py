"""What the ways of computing infinite-width kernels are given, and where they put them.

Axes: s pixels (1 in an MLP); n, m inputs; k numbers of an input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ridgescope.models.kernels.infinite.affine import Affine
from ridgescope.models.kernels.infinite.threads import Workers
from ridgescope.models.network import Network

Slices = tuple[slice, slice]


@dataclass(frozen=True)
class Inputs:
    """Images or vectors (n, k), and the variances of every hidden layer, each (s, n); all float64."""

    values: Tensor
    variances: list[Tensor]


@dataclass(frozen=True)
class Task:
    """Both kernels of all pairs of inputs, into ``nngp`` and ``ntk`` (n, m); symmetric where both sides are one."""

    network: Network
    affine: list[Affine]
    one: Inputs
    two: Inputs
    nngp: Tensor
    ntk: Tensor

    @property
    def symmetric(self) -> bool:
        return self.one is self.two

    def tiles(self, side: int) -> list[Slices]:
        """Rows and columns of squares of at most that side; of a symmetric kernel those above and on the diagonal."""
        rows, columns = self.nngp.shape
        return [
            (slice(start, min(start + side, rows)), slice(other, min(other + side, columns)))
            for start in range(0, rows, side)
            for other in range(start if self.symmetric else 0, columns, side)
        ]

    def in_tiles(self, workers: Workers, side: int, work: Callable[[slice, slice], tuple[Tensor, Tensor]]) -> None:
        """Both kernels tile by tile."""

        def place(tile: Slices) -> None:
            for kernel, values in zip((self.nngp, self.ntk), work(*tile), strict=True):
                self._place(kernel, values, *tile)

        workers.for_each(place, self.tiles(side))

    def _place(self, kernel: Tensor, values: Tensor, p: slice, q: slice) -> None:
        if self.symmetric and p == q:
            values = values.triu() + values.triu(1).T
        elif self.symmetric:
            kernel[q, p] = values.T
        kernel[p, q] = values

    def largest(self) -> list[float]:
        """The largest variance on either side, for every hidden layer."""
        pairs = zip(self.one.variances, self.two.variances, strict=True)
        return [float(torch.maximum(q1.max(), q2.max())) for q1, q2 in pairs]
