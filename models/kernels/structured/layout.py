"""How a kernel is cut into tiles so that everything held at once fits a memory budget.

Rows are taken in strips, whose factors are held while the columns' factors pass by in groups; a tile is one strip
against one group. Of a symmetric kernel only tiles on and above the diagonal exist:

    strip   inputs of the rows whose factors are held          group   inputs of a tile's columns
    chunk   inputs that pass through the network together      each    counted in inputs, not in rows of the kernel
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ridgescope.models.kernels.structured import contract
from ridgescope.models.kernels.structured.forms import Spatial
from ridgescope.models.kernels.structured.plan import Plan
from ridgescope.sizes import format_size

USABLE = 0.9  # of a budget; the rest is for what allocators round up and keep
OVERHEAD = 16e6  # bytes, at most half of a budget: buffers of the matrix library, measured
SMALL = 64  # inputs on a side below which matrix products are slow
PIECES = 16  # groups that a stored or shared kernel has at least: what a kill can cost, and what ranks can share


@dataclass(frozen=True)
class Tile:
    """Rows and columns, in inputs. ``square`` tiles end in a square on the diagonal: its columns are rows too."""

    index: int
    strip: slice
    rows: slice
    columns: slice
    square: bool

    @property
    def pairs(self) -> int:
        """Pairs of inputs that are computed: of the square half."""
        rows, columns = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return rows * columns - (columns * columns // 2 if self.square else 0)


@dataclass(frozen=True)
class Layout:
    """``inner``: the group inside a strip of a symmetric kernel, where it needs no factors of its own."""

    rows: int
    columns: int
    symmetric: bool
    strip: int
    group: int
    inner: int
    chunk: int
    scratch: int | float  # bytes for explicit gradients formed at a time
    held: int | float  # bytes held at once by the estimate, the kernel itself included unless it is stored

    @property
    def sizes(self) -> tuple[int, int]:
        """What `factors.settle` asks for."""
        return self.strip, self.chunk

    def tiles(self) -> list[Tile]:
        return [Tile(index, *place) for index, place in enumerate(self._places())]

    def _places(self) -> Iterator[tuple[slice, slice, slice, bool]]:
        for start in range(0, self.rows, self.strip):
            strip = slice(start, min(start + self.strip, self.rows))
            if self.symmetric:
                for columns in _groups(strip.start, strip.stop, self.inner):
                    yield strip, slice(strip.start, columns.stop), columns, True
            for columns in _groups(strip.stop if self.symmetric else 0, self.columns, self.group):
                yield strip, strip, columns, False


def _groups(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def make_layout(
    plan: Plan,
    rows: int,
    columns: int,
    *,
    symmetric: bool,
    budget: int | float,
    result: int,
    stored: bool,
    shared: int = 1,
) -> Layout:
    """The largest pieces that fit ``budget`` bytes.

    ``result`` is the size of the kernel, which is part of the budget unless it is ``stored`` on disk; a tile is held
    then. ``shared``: among how many processes tiles are dealt. Raises ``ValueError`` with the budget that would do.

    Of what one input at a time leaves, strips get 5/8 (with their part of a tile), since columns pass through the
    network once for each strip; a group gets 1/8, a pass 1/4.
    """
    size = plan.dtype.itemsize
    held = size * (plan.numbers_per_input + _gradients_per_input(plan))
    passing, pair = plan.working_bytes_per_input, size * plan.blocks**2
    copies = (2 if symmetric else 1) if stored else 0  # what is stored of a tile is transposed for its mirror image

    room = budget - (0 if stored else result)
    scratch = min(room / 10, float(contract.CHUNK))
    once = (
        min(OVERHEAD, room / 3)
        + plan.activations.once
        + _temporary_bytes(plan, room * 5 / 8 / held, room / 8 / held, scratch)
    )
    least: float = 2 * held + copies * pair + passing  # a strip, a group and a pass of one input each
    spare = USABLE * room - once - least
    if spare < 0:
        least += plan.activations.once + _temporary_bytes(plan, 1, 1, contract.CHUNK)
        least /= USABLE - 1 / 2
        raise ValueError(_too_small(budget, least, rows, columns, None if stored else result))
    group = inner = 1 + int(spare / 8 / (held + copies * pair))
    if stored or shared > 1:
        pieces = max(SMALL, -(-columns // max(PIECES, 4 * shared)))
        # a tile must not crowd out the factors of its strip
        group = inner = min(group, pieces, max(SMALL, int(held / (copies * pair))) if copies else pieces)
    strip = 1 + int(spare * 5 / 8 / (held + copies * pair * group))
    fast = max(-(-8 // plan.together), plan.fast // plan.together)
    chunk = min(1 + int(spare / 4 / passing), fast, 256)
    strip, group = min(strip, rows), min(group, columns)
    chunk = -(-strip // -(-strip // chunk))  # passes of equal size: a short last one costs nearly a full one
    total = strip * (held + copies * pair * group) + group * held + chunk * passing + once
    return Layout(
        rows=rows,
        columns=columns,
        symmetric=symmetric,
        strip=strip,
        group=group,
        inner=inner if stored or shared > 1 else rows,
        chunk=chunk,
        scratch=scratch,
        held=total + (0 if stored else result),
    )


def _too_small(budget: int | float, least: int | float, rows: int, columns: int, result: int | None) -> str:
    kernel = "" if result is None else f" beside the {format_size(result)} of its {rows} x {columns} kernel"
    disk = "" if result is None else ", or path=FOLDER to keep the kernel on disk"
    return (
        f"memory={format_size(budget)} cannot hold one input of this network{kernel}; "
        f"pass memory={format_size(least + (result or 0))!r} or more{disk}"
    )


def _gradients_per_input(plan: Plan) -> int:
    """Numbers of one output channel's gradients, formed where a layer is kept as positions."""
    spatial = [layer.fan_in + layer.positions for layer in plan.layers.values() if layer.form is Spatial]
    return plan.num_outputs * max(spatial, default=0)


def _temporary_bytes(plan: Plan, rows: int | float, columns: int | float, scratch: int | float) -> int | float:
    """Products and gates of `contract`, which are formed in squares."""
    size, tile = plan.dtype.itemsize, contract.TILE
    total = 3 * size * min(tile, rows) * min(tile, columns)
    spatial = [layer for layer in plan.layers.values() if layer.form is Spatial]
    if spatial:
        pairs = max(2 * max(tile, layer.positions) ** 2 for layer in spatial)
        side = max(16 * layer.positions * (layer.positions + layer.fan_out) for layer in spatial)
        total += scratch + size * max(pairs, side, contract.COLUMNS)
    return total


def deal(tiles: list[Tile], parts: int) -> list[list[Tile]]:
    """Runs of neighbouring tiles of about equal work, one for each of ``parts`` processes."""
    total, done = sum(tile.pairs for tile in tiles), 0
    hands: list[list[Tile]] = [[] for _ in range(parts)]
    for tile in tiles:
        hands[min(parts - 1, int(parts * (done + tile.pairs / 2) / total))].append(tile)
        done += tile.pairs
    return hands
