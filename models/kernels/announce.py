"""Before a long computation: how long, how much memory and disk. During it: how long it will still take."""

import sys
import time
from functools import cache

import torch

from ridgescope.models.kernels.structured.forms import Diagonal, Explicit, Gated
from ridgescope.models.kernels.structured.layout import Layout, Tile
from ridgescope.models.kernels.structured.plan import LayerPlan, Plan
from ridgescope.sizes import format_size

QUIET = 10.0  # seconds: shorter computations say nothing
SHORT = 1e10  # products that no machine takes long for: trying its speed would cost as much as a small kernel
EVERY = 30.0  # seconds between lines
PASS_SPEED, PAIR_SPEED = 0.2, 0.6  # of one large matrix product; the first tiles correct what they are wrong by


class Announcer:
    """``tiles`` are those of this process, in the order they are computed; ``quiet`` says nothing at all."""

    def __init__(self, plan: Plan, layout: Layout, tiles: list[Tile], *, stored: int, quiet: bool) -> None:
        self.work, self.done = _work(plan, tiles), 0.0
        self.total = sum(self.work.values())
        seconds = 0.0 if quiet or self.total < SHORT else self.total / _rate(plan)
        self.long = seconds >= QUIET
        self.start = self.last = time.monotonic()
        if self.long:
            disk = f", {format_size(stored)} of disk" if stored else ""
            _say(
                f"{layout.rows} x {layout.columns} kernel in {len(tiles)} tiles: "
                f"about {duration(seconds)}, {format_size(layout.held)} of memory{disk}"
            )

    def advance(self, tile: Tile) -> None:
        self.done += self.work[tile.index]
        now = time.monotonic()
        first = self.last == self.start
        if self.long and self.done < self.total and (first or now - self.last >= EVERY):
            self.last = now
            spent = now - self.start
            left = spent / self.done * (self.total - self.done)
            _say(f"kernel: {self.done / self.total:.0%} after {duration(spent)}, about {duration(left)} left")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _work(plan: Plan, tiles: list[Tile]) -> dict[int, float]:
    """Multiply-adds of each tile, in units of those of one large matrix product."""
    layers = plan.layers.values()
    jacobian = sum(plan.params[name].numel() for names in plan.rest.values() for name in names)
    one_pass = sum(layer.positions * layer.fan_in * layer.fan_out for layer in layers) + jacobian
    one_pair = sum(_pair_products(layer, plan) for layer in layers) + _squared(plan) * jacobian
    work: dict[int, float] = {}
    strip = -1
    for tile in tiles:
        inputs = 0 if tile.square else tile.columns.stop - tile.columns.start
        if tile.strip.start != strip:  # its rows pass through the network first
            strip = tile.strip.start
            inputs += tile.strip.stop - strip
        passes = inputs * (1 + plan.num_outputs) * one_pass
        work[tile.index] = passes / PASS_SPEED + tile.pairs * one_pair / PAIR_SPEED
    return work


def _pair_products(layer: LayerPlan, plan: Plan) -> int:
    s, k, o = layer.positions, layer.fan_in, layer.fan_out
    outer = _squared(plan)
    if layer.form is Diagonal:
        return k
    if layer.form is Gated:
        return k + outer * o
    gradients = outer * o * k
    if layer.form is Explicit:
        return gradients
    return min(gradients, s * s * (k + outer * o))


def _squared(plan: Plan) -> int:
    """Products of one entry of the outputs' gradients for each pair of inputs."""
    return plan.num_outputs if plan.trace else plan.num_outputs**2


def _rate(plan: Plan) -> float:
    device = next(iter(plan.params.values())).device
    return _product_rate(plan.dtype, device, torch.get_num_threads())


@cache  # trying it takes as long as a small kernel
def _product_rate(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Multiply-adds a second of a 512 x 512 product, the better of three."""
    a = torch.ones(512, 512, dtype=dtype, device=device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for a GPU
        times.append(time.perf_counter() - start)
    return 512**3 / min(times)
