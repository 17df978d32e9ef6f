"""What a run costs, and what to buy: the cheapest (P, N, E) for a target risk, the best risk for a budget.

A network's training FLOPs are counted, not guessed: torch's counter on one forward and backward pass of the module
itself. E networks of width N on P samples for T passes cost

    FLOPs(P, N, E) = E T P flops_per_sample(N)

Seconds on this machine follow from its measured rate of float32 matrix products; seconds and energy on a GPU from a
stated model: peak rate times utilisation, and its power while it is busy. None of these enters a forecast of risk.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ridgescope.train.errors import UserError

MEMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Machine:
    """A GPU as a model: ``peak`` FLOP/s of the precision used, ``utilisation`` of it, ``watts`` while busy.

    The defaults are an H100 SXM's data sheet for TF32 without sparsity and its board power, at 35 % of the peak.
    """

    peak: float = 4.95e14
    utilisation: float = 0.35
    watts: float = 700.0

    def seconds(self, flops: int | float) -> float:
        return flops / (self.peak * self.utilisation)

    def kilowatt_hours(self, flops: int | float) -> float:
        return self.seconds(flops) * self.watts / 3.6e6


@dataclass(frozen=True)
class Cost:
    """FLOPs of one training pass over one sample, for each width."""

    flops_per_sample: Mapping[float, float]
    passes: int | float

    def flops(self, num_samples: int | float, width: int | float, members: int = 1) -> float:
        return members * self.passes * num_samples * self.flops_per_sample[width]


def measured_cost(
    network: Callable[[int], nn.Module], widths: Sequence[int | float], x: Tensor, passes: int | float
) -> Cost:
    """Count one forward and backward pass of ``network(width)`` on the few inputs ``x`` for every finite width."""
    counts = {}
    for width in widths:
        if width == float("inf"):
            continue
        model = network(int(width))
        with FlopCounterMode(display=False) as counter:
            model(x).square().sum().backward()
        counts[width] = counter.get_total_flops() / len(x)
    return Cost(counts, passes)


@cache
def flops_here(size: int = 1024) -> float:
    """FLOP/s of a float32 matrix product on this machine, best of five."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def choices(optimal: pd.DataFrame, cost: Cost, machine: Machine | None = None) -> pd.DataFrame:
    """Every (P, N, E) of a forecast's table of best ridges that is determined and has a cost, with its risk.

    The upper end of the interval scales with the risk.
    """
    machine = machine or Machine()
    rows = []
    for row in optimal.to_dict("records"):
        if row["status"] != "forecast" or row["width"] not in cost.flops_per_sample:
            continue
        for members in MEMBERS if row["ensemble_floor"] < 1 else (1,):
            share = row["ensemble_floor"] + (1 - row["ensemble_floor"]) / members
            flops = cost.flops(row["P"], row["width"], members)
            rows.append(
                {
                    "P": row["P"],
                    "width": row["width"],
                    "members": members,
                    "ridge": row["ridge"],
                    "risk": share * row["risk"],
                    "risk_high": share * row["risk_high"],
                    "flops": flops,
                    "seconds_here": flops / flops_here(),
                    "gpu_seconds": machine.seconds(flops),
                    "gpu_kwh": machine.kilowatt_hours(flops),
                }
            )
    return pd.DataFrame(rows)


def cheapest(table: pd.DataFrame, target: int | float, *, safe: bool = False) -> dict[str, float] | None:
    """The row of `choices` with the least FLOPs whose risk (``safe``: the upper end of its interval) meets ``target``.

    None where no choice does.
    """
    if not target > 0:
        raise UserError(f"target_risk={target:g} must be > 0")
    if table.empty:
        return None
    enough = table[table["risk_high" if safe else "risk"] <= target]
    return None if enough.empty else _first(enough.sort_values(["flops", "risk"]))


def best_risk(table: pd.DataFrame, budget: int | float) -> dict[str, float] | None:
    """The row of `choices` with the least risk that costs at most ``budget`` FLOPs; None where none does."""
    if not budget > 0:
        raise UserError(f"budget={budget:g} is a number of FLOPs and must be > 0")
    if table.empty:
        return None
    affordable = table[table["flops"] <= budget]
    return None if affordable.empty else _first(affordable.sort_values(["risk", "flops"]))


def _first(table: pd.DataFrame) -> dict[str, float]:
    return {str(key): float(value) for key, value in table.iloc[0].items()}
