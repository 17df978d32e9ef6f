"""The tiles of a kernel, one after the other, each from the factors of its rows and of its columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from torch import Tensor

from ridgescope.models.kernels.structured.contract import add_factor, mirror
from ridgescope.models.kernels.structured.factors import layer_factors
from ridgescope.models.kernels.structured.forms import Factor, cut
from ridgescope.models.kernels.structured.layout import Layout, Tile
from ridgescope.models.kernels.structured.plan import Plan


def compute_tiles(
    plan: Plan,
    layout: Layout,
    x1: Tensor,
    x2: Tensor | None,
    tiles: Iterable[Tile],
    target: Callable[[Tile], Sequence[Tensor]],
    first: list[Factor],
) -> Iterator[Tile]:
    """Yield each tile once it stands in ``target(tile)``: zeros (c, rows, c, columns), one array for the sum over all
    modules or one for each in ``plan.names``. ``first``: factors of the first strip, or none; emptied here."""
    left = first
    right: list[Factor] = []
    for _, group in groupby(tiles, key=lambda tile: tile.strip.start):
        mine = list(group)
        strip = mine[0].strip
        if strip.start > 0 or not left:
            left.clear()  # before the next ones are made, or both would be held at once
            right.clear()
            left = layer_factors(plan, x1[strip], layout.chunk)
        for tile in mine:
            right.clear()
            if tile.square:
                right = _cut(left, tile.columns, strip.start)
            else:
                right = layer_factors(plan, (x1 if x2 is None else x2)[tile.columns], layout.chunk)
            kernels = target(tile)
            for i, (one, other) in enumerate(zip(left, right, strict=True)):
                _fill(kernels[i if len(kernels) > 1 else 0], tile, one, other, layout.scratch)
            if tile.square:
                for kernel in kernels:
                    mirror(kernel[:, tile.columns.start - strip.start :])
            yield tile


def _cut(factors: list[Factor], rows: slice, origin: int) -> list[Factor]:
    return [cut(factor, slice(rows.start - origin, rows.stop - origin)) for factor in factors]


def _fill(kernel: Tensor, tile: Tile, left: Factor, right: Factor, scratch: float) -> None:
    above = tile.columns.start - tile.strip.start if tile.square else len(kernel[0])
    if above:
        add_factor(kernel[:, :above], cut(left, slice(0, above)), right, symmetric=False, memory=scratch)
    if tile.square:
        add_factor(kernel[:, above:], right, right, symmetric=True, memory=scratch)
