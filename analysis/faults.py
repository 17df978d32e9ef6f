"""From numbers to the link that is broken: repeated inputs, the ridge, the length of training, the labels."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """``link`` names what is broken, ``sentence`` says how that was seen and how large it is."""

    link: str
    sentence: str


def repeated_points(gram: Float64[Tensor, "m m"], tolerance: float = 1e-6) -> int:
    """How many points have a copy among the others: squared distance below ``tolerance`` times the mean K(x, x)."""
    diagonal = gram.diagonal()
    limit = tolerance * float(diagonal.mean())
    repeated = 0
    for start in range(0, len(gram), 500):
        rows = slice(start, start + 500)
        distances = diagonal[rows, None] + diagonal - 2 * gram[rows]
        distances[torch.arange(len(distances)), torch.arange(len(gram))[rows]] = torch.inf
        repeated += int((distances.min(1).values < limit).sum())
    return repeated


def kernel_findings(table: pd.DataFrame, gram: Tensor, model: str) -> list[Finding]:
    """What stands behind uneven points: copies, unequal norms, or neighbours of unequal use."""
    found = []
    if copies := repeated_points(gram):
        found.append(
            Finding(
                "inputs",
                f"{copies} of {len(gram)} points have a copy among the others; drop them, or split so that copies "
                "stay together",
            )
        )
    rows = table[table["model"] == model]
    low = rows.loc[rows["ridge"] == rows["ridge"].min()]
    ratio = float((low["kappa_resolvent"] / low["kappa_left_out"]).mean())
    elliptical = table[(table["model"] == "elliptical control") & (table["ridge"] == rows["ridge"].min())]
    if ratio < 0.97:
        norms = float((elliptical["kappa_resolvent"] / elliptical["kappa_left_out"]).mean())
        share = f"; unequal norms alone give {100 * (norms - 1):+.0f} %" if norms == norms else ""
        found.append(
            Finding(
                "points alike",
                f"at ridge {low['ridge'].iloc[0]:g} the trace of the resolvent is {100 * (ratio - 1):+.0f} % off the κ "
                f"of the modes, because left-out variances differ by {100 * low['unevenness'].mean():.0f} % between "
                f"points (Gaussian points: {100 * low['unevenness_gaussian'].mean():.0f} %){share}",
            )
        )
    return found


def network_findings(rows: pd.DataFrame) -> list[Finding]:
    """What networks act like, where most of them act like the same thing that they were not told."""
    found = []
    for reading, part in rows.groupby("reading"):
        if reading != "told" and len(part) > len(rows) / 2:
            first = part.median(numeric_only=True)
            found.append(
                {
                    "ridge": Finding(
                        "ridge of training",
                        f"{len(part)} of {len(rows)} networks act like ridge {first['acting_ridge']:.2g}, not "
                        f"{first['ridge']:.2g} ({first['acting_ridge'] / first['ridge']:.2g} times); check the decay",
                    ),
                    "flow": Finding(
                        "length of training",
                        f"{len(part)} of {len(rows)} networks act like gradient flow stopped at time "
                        f"{first['acting_time']:.2g} (about ridge {1 / first['acting_time']:.2g}), not like ridge "
                        f"{first['ridge']:.2g} at its end; train longer",
                    ),
                    "labels": Finding(
                        "labels of training",
                        f"{len(part)} of {len(rows)} networks learned other labels: as if noise of variance "
                        f"{first['acting_noise']:.2g} were on them, or features of their own; check the labels",
                    ),
                }[str(reading)]
            )
    return found
