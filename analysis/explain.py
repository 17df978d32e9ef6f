"""A verdict in two plain sentences: what was compared, and what follows from it."""

import math
from collections.abc import Mapping
from typing import Any

from ridgescope.analysis.claims import Claim


def explanation(row: Mapping[str, Any], claim: Claim) -> str:
    """Two sentences for a reader who knows no statistics, from a row of the table of verdicts."""
    return f"{_compared(row, claim)} {_follows(row, claim)}"


def _compared(row: Mapping[str, Any], claim: Claim) -> str:
    unit = _unit(claim)
    if not math.isfinite(row["deviation"]):
        reason = row["note"].partition(": ")[2]
        why = f" ({reason})" if reason else ""
        return f"There is nothing to compare: {claim.what} or {claim.against} could not be had for any {unit}{why}."
    left_out = f"; {row['excluded']} {unit}s had to be left out" if row["excluded"] else ""
    side = "larger" if row["deviation"] >= 0 else "smaller"
    bound = "may be larger by at most" if claim.test == "at_most" else "may differ by"
    size = _percent(abs(row["deviation"]))
    where = f", and in the worst of {row['cells']} cells by {_percent(abs(row['worst']))}" if row["cells"] > 1 else ""
    return (
        f"On average over {row['networks']} {unit}s {claim.what} is {size} {side} than {claim.against}{where}; "
        f"the two {bound} {100 * claim.tolerance:g} %{left_out}."
    )


def _follows(row: Mapping[str, Any], claim: Claim) -> str:
    if row["verdict"] == "holds":
        return "Even with the uncertainty of the measurement that is within what was allowed, so the claim holds."
    if row["verdict"] == "fails":
        return f"That is more than chance and more than was allowed, so the claim fails: {claim.if_fails}."
    if not math.isfinite(row["deviation"]):
        return "So nothing can be said of this claim."
    if not math.isfinite(row["high"]):
        return f"There is {row['note'] or 'no repetition'}, so nobody can say how far chance moves this number."
    if "excluded" in row["note"]:
        return f"Too many {_unit(claim)}s are missing for a verdict, because the rest may not be typical of all."
    interval = f"{_percent(row['low'], '+')} to {_percent(row['high'], '+')}"
    if math.isfinite(row["needed"]):
        return (
            f"Chance alone could move it (the 90 % interval is {interval}), so the verdict is open; about "
            f"{row['needed']:.0f} seeds and training sets per cell would decide it."
        )
    return (
        f"It lies so close to the limit (the 90 % interval is {interval}) that more {_unit(claim)}s would hardly "
        "decide it."
    )


def _unit(claim: Claim) -> str:
    """What is averaged over; at infinite width there is no network, but regression at many more training sets."""
    return "kernel regression" if claim.infinite_width else "network"


def _percent(value: float, sign: str = "") -> str:
    """Two digits and no powers of ten: 0.0123 -> 1.2 %, 1.07 -> 110 %."""
    return f"{float(f'{100 * value:.2g}'):{sign}g} %"
