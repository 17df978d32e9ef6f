"""Verdicts: where the ridge theory describes trained networks, where it does not, and which link breaks.

The chain from theory to network has three links, each tested on its own:

    theory --> kernel at infinite width --> kernel at finite width --> trained network

A verdict is an equivalence test (``equivalence.py``), never "no significant difference": few networks give
*undetermined*, not *holds*. Input: a table ``networks`` with one row per trained network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ridgescope.analysis.cells import CELL, cells, kappa_parts, setting_labels, usable
from ridgescope.analysis.claims import CHAIN, DEFAULT_CLAIMS, Claim
from ridgescope.analysis.equivalence import Equivalence, equivalence

__all__ = ["DEFAULT_CLAIMS", "Claim", "broken_links", "cells", "chains", "evaluate", "kappa_parts"]

# A claim that lost more of its networks than this is undetermined, whatever the others say.
MAX_EXCLUDED = 0.20


def evaluate(
    networks: pd.DataFrame, claims: Sequence[Claim] = DEFAULT_CLAIMS, *, infinite: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Judge every claim for every setting, over all its cells (scope 'all') and for each width on its own.

    Returns one row per verdict: claim, label, sentence, link, model, scope, measured, predicted
    (geometric means over cells), deviation, error (standard error), low, high (90 % interval), rms,
    rms_low, rms_high, worst (over cells), tolerance, cells, networks, excluded, verdict, note, runs.
    Deviations are measured/predicted - 1.

    Networks without a positive finite value on both sides are excluded and counted: a network that was not
    trained to its optimum has none for what depends on training. ``infinite`` holds infinite-width kernels on many
    draws, in columns of the same names; without it the claims about them are judged on the networks' own draws.
    Raises ``ValueError`` on a missing column.
    """
    networks = _checked(networks, claims)
    labels = setting_labels(networks)
    kernels = networks if infinite is None or infinite.empty else infinite
    kernel_labels = setting_labels(kernels)
    rows: list[dict[str, object]] = []
    for label in dict.fromkeys(labels):
        for claim in claims:
            table = kernels[kernel_labels == label] if claim.infinite_width else networks[labels == label]
            rows += _judge(claim, label, table)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Chain:
    """What the verdicts say of one model's chain: an opening, and for each link by name where it holds."""

    opening: str
    links: dict[str, str]


def chains(verdicts: pd.DataFrame) -> dict[str, Chain]:
    """For each model: which of the three links of the chain holds, and which breaks where."""
    found = {}
    for model, rows in verdicts.groupby("model", sort=False):
        links = {str(link["link"].iloc[0]): link for key in CHAIN if len(link := rows[rows["claim"] == key])}
        broken = [name for name, link in links.items() if (link["verdict"] == "fails").any()]
        if broken:
            opening = f"the chain breaks at {' and at '.join(broken)}"
        elif links and all((link["verdict"] == "holds").all() for link in links.values()):
            opening = "no link breaks"
        else:
            opening = "no link is shown to break, but not all could be decided"
        found[str(model)] = Chain(opening, {name: _where(link) for name, link in links.items()})
    return found


def broken_links(verdicts: pd.DataFrame) -> dict[str, str]:
    """One sentence per model: the opening of its chain, and the state of each link."""
    return {
        model: f"{chain.opening}: {'; '.join(f'{name} {where}' for name, where in chain.links.items())}."
        for model, chain in chains(verdicts).items()
    }


def _checked(networks: pd.DataFrame, claims: Sequence[Claim]) -> pd.DataFrame:
    if networks.empty:
        raise ValueError("the table of networks has no rows; analyse at least one finished run")
    needed = {*CELL, "run", "seed", "draw", "converged"}
    for claim in claims:
        expressions = f"{claim.measured} / {claim.predicted}".replace("(", " ").replace(")", " ").split()
        needed |= {word for word in expressions if word.isidentifier()}
    if missing := sorted(needed - set(networks.columns)):
        raise ValueError(
            f"the table of networks lacks {', '.join(missing)}; analyse the runs again, or leave out "
            "the claims that use them"
        )
    return usable(networks)


def _judge(claim: Claim, model: str, networks: pd.DataFrame) -> list[dict[str, object]]:
    selected = networks.query(claim.selection) if claim.selection else networks
    if selected.empty:
        return []
    sides = selected.assign(
        measured=np.asarray(selected.eval(claim.measured), np.float64),
        predicted=np.asarray(selected.eval(claim.predicted), np.float64),
    )
    rows = [_verdict(claim, model, "all", sides)]
    if "width" in claim.grouping and rows[0]["cells"] and sides["width"].nunique() > 1:
        for width, group in sides.groupby("width", sort=True):
            rows.append(_verdict(claim, model, f"width {width}", group))
    return rows


def _verdict(claim: Claim, model: str, scope: str, sides: pd.DataFrame) -> dict[str, object]:
    both = sides[["measured", "predicted"]]
    kept = sides[(np.isfinite(both) & (both > 0)).all(axis=1)]
    log_sides = kept[["measured", "predicted"]].apply(np.log)
    cell = kept.groupby(list(claim.grouping), sort=True).ngroup()
    ratios = kept[list(claim.factors)].assign(cell=cell, log_ratio=log_sides["measured"] - log_sides["predicted"])
    result = equivalence(ratios, claim.factors)
    excluded = len(sides) - len(kept)
    verdict, note = _with_exclusions(result, claim.tolerance, excluded, len(sides))
    means = np.exp(log_sides.groupby(cell).mean().mean())
    return {
        "claim": claim.key,
        "label": claim.label,
        "sentence": claim.sentence,
        "link": claim.link,
        "model": model,
        "scope": scope,
        "measured": float(means["measured"]),
        "predicted": float(means["predicted"]),
        "deviation": result.deviation,
        "error": result.error,
        "low": result.low,
        "high": result.high,
        "rms": result.rms,
        "rms_low": result.rms_low,
        "rms_high": result.rms_high,
        "worst": result.worst,
        "tolerance": claim.tolerance,
        "cells": result.cells,
        "networks": len(kept),
        "excluded": excluded,
        "verdict": verdict,
        "note": note,
        "runs": sorted(set(kept["run"])),
    }


def _with_exclusions(result: Equivalence, tolerance: float, excluded: int, total: int) -> tuple[str, str]:
    if excluded > MAX_EXCLUDED * total:
        note = "not available" if excluded == total else f"{excluded} of {total} networks excluded"
        return "undetermined", note
    return result.verdict(tolerance), result.note


def _where(link: pd.DataFrame) -> str:
    """'holds', or 'holds at width 64 and 128, fails at width 16 (+45 % at the worst)'."""
    overall, per_width = link.iloc[0], link.iloc[1:]
    if not np.isfinite(overall["deviation"]):
        return f"is undetermined ({overall['note']})"
    if per_width["verdict"].nunique() <= 1:
        everywhere = " at every width" if len(per_width) else ""
        verdict = per_width["verdict"].iloc[0] if len(per_width) else overall["verdict"]
        return f"{_phrase(verdict)}{everywhere} ({_percent(overall['deviation'])} on average)"
    parts = []
    for verdict in ("holds", "fails", "undetermined"):
        rows = per_width[per_width["verdict"] == verdict]
        if len(rows):
            widths = ", ".join(scope.removeprefix("width ") for scope in rows["scope"])
            parts.append(f"{_phrase(verdict)} at width {widths}")
            if verdict == "fails":
                worst = rows["worst"].to_numpy()
                parts[-1] += f" ({_percent(worst[np.abs(worst).argmax()])} in the worst cell)"
    return ", ".join(parts)


def _phrase(verdict: str) -> str:
    return "is undetermined" if verdict == "undetermined" else verdict


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"
