"""Verdicts: where the ridge theory describes trained networks, where it does not, and which link breaks.

The chain from theory to network has three links, each tested on its own:

    theory --> kernel at infinite width --> kernel at finite width --> trained network

A verdict is an equivalence test (``equivalence.py``), never "no significant difference": few networks give
*undetermined*, not *holds*. Many claims are judged at once, so their p-values are corrected (Holm) within families: the
required claims, the others, and the widths of one claim. Input: a table ``networks``, one row per trained network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd

from ridgescope.analysis.cells import CELL, cells, kappa_parts, setting_labels, usable
from ridgescope.analysis.claims import CHAIN, DEFAULT_CLAIMS, Claim
from ridgescope.analysis.equivalence import Equivalence, decide, equivalence, holm
from ridgescope.analysis.explain import explanation

__all__ = ["DEFAULT_CLAIMS", "Claim", "broken_links", "cells", "chains", "evaluate", "failed_required", "kappa_parts"]

# A claim that lost more of its networks than this is undetermined, whatever the others say.
MAX_EXCLUDED = 0.20


def evaluate(
    networks: pd.DataFrame,
    claims: Mapping[str, Claim] = DEFAULT_CLAIMS,
    *,
    infinite: pd.DataFrame | None = None,
    stopping: pd.DataFrame | None = None,
    level: float = 0.05,
) -> pd.DataFrame:
    """Judge every claim for every setting, over all its cells (scope 'all') and for each width on its own.

    Returns one row per verdict: claim, label, sentence, link, model, scope, test, required, measured, predicted
    (geometric means over cells), deviation, error (standard error), low, high (90 % interval), rms,
    rms_low, rms_high, worst (over cells), tolerance, cells, networks, excluded, p_holds, p_fails (corrected within
    their family), verdict, needed (seeds and draws, NaN where unknown or decided), note, explanation, runs.
    Deviations are measured/predicted - 1. ``level`` bounds the chance that any 'holds' of a family is wrong, and
    the chance that any 'fails' is.

    Networks without a positive finite value on both sides are excluded and counted: a network that was not
    trained to its optimum has none for what depends on training, a kernel that cannot carry the ridge none at all
    (its reason, in the column ``undetermined``, goes into the note). ``infinite`` holds infinite-width kernels on many
    draws, in columns of the same names; without it the claims about them are judged on the networks' own draws.
    ``stopping`` holds gradient flow at the measured times (``analysis.stopping``); claims about it need it.
    Raises ``ValueError`` on a missing column.
    """
    if not 0 < level < 0.5:
        raise ValueError(f"level={level} is the chance of a wrong verdict; choose 0 < level < 0.5, e.g. 0.05")
    networks = _checked(networks, claims)
    labels = setting_labels(networks)
    kernels = networks if infinite is None or infinite.empty else infinite
    kernel_labels = setting_labels(kernels)
    flow, flow_labels = _along_training(stopping, networks["run"], labels)
    judged: list[_Judged] = []
    for label in dict.fromkeys(labels):
        for key, claim in claims.items():
            table = kernels[kernel_labels == label] if claim.infinite_width else networks[labels == label]
            if claim.along_training:
                table = flow[flow_labels == label]
            judged += _judge(key, claim, label, table)
    return pd.DataFrame(_decided(judged, level))


def failed_required(verdicts: pd.DataFrame) -> list[str]:
    """One line for each required claim that fails over all cells, naming the model, the claim and its link."""
    rows = verdicts[(verdicts["scope"] == "all") & verdicts["required"] & (verdicts["verdict"] == "fails")]
    return [
        f"required claim {row['claim']} fails for {row['model']} ({row['link']}): {_percent(row['deviation'])}, rms "
        f"{100 * row['rms']:.1f} %, where {100 * row['tolerance']:g} % is allowed"
        for row in rows.to_dict("records")
    ]


def _along_training(
    stopping: pd.DataFrame | None, runs: pd.Series, labels: pd.Series
) -> tuple[pd.DataFrame, pd.Series]:
    """The table of measured times, and for each row the label that its run has among the networks."""
    flow = pd.DataFrame(columns=["run"]) if stopping is None or stopping.empty else usable(stopping)
    return flow, flow["run"].map(dict(zip(runs, labels, strict=True)))


@dataclass(frozen=True)
class Chain:
    """What the verdicts say of one model's chain: an opening, and for each link by name where it holds."""

    opening: str
    links: dict[str, str]


def chains(verdicts: pd.DataFrame) -> dict[str, Chain]:
    """For each model: which of the three links of the chain holds, and which breaks where.

    Of claims that are not about this chain, each is a link of its own.
    """
    found = {}
    for model, rows in verdicts.groupby("model", sort=False):
        names = CHAIN if set(rows["claim"]) & set(chain(*CHAIN)) else [(key,) for key in rows["claim"].unique()]
        judged = [link for keys in names if (link := _speaking(rows, keys)) is not None]
        links = {str(link["link"].iloc[0]): link for link in judged}
        broken = [name for name, link in links.items() if (link["verdict"] == "fails").any()]
        if broken:
            opening = f"the chain breaks at {' and at '.join(broken)}"
        elif links and all((link["verdict"] == "holds").all() for link in links.values()):
            opening = "no link breaks"
        else:
            opening = "no link is shown to break, but not all could be decided"
        found[str(model)] = Chain(opening, {name: _where(link) for name, link in links.items()})
    return found


def _speaking(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame | None:
    """The verdicts of the first claim among ``keys`` that has numbers; of the first at all where none has."""
    claims = [claim for key in keys if len(claim := rows[rows["claim"] == key])]
    measured = [claim for claim in claims if np.isfinite(claim["deviation"].iloc[0])]
    return next(iter([*measured, *claims]), None)


def broken_links(verdicts: pd.DataFrame) -> dict[str, str]:
    """One sentence per model: the opening of its chain, and the state of each link."""
    return {
        model: f"{found.opening}: {'; '.join(f'{name} {where}' for name, where in found.links.items())}."
        for model, found in chains(verdicts).items()
    }


@dataclass(frozen=True)
class _Judged:
    """A row of the table before the correction for multiplicity; ``family`` is corrected together."""

    row: dict[str, object]
    claim: Claim
    result: Equivalence
    p_values: tuple[float, float]
    family: tuple[object, ...]


def _decided(judged: list[_Judged], level: float) -> list[dict[str, object]]:
    families: dict[tuple[object, ...], list[_Judged]] = {}
    for one in judged:
        families.setdefault(one.family, []).append(one)
    for members in families.values():
        corrected = zip(*(holm(p) for p in zip(*(one.p_values for one in members), strict=True)), strict=True)
        for one, (p_holds, p_fails) in zip(members, corrected, strict=True):
            one.row.update(p_holds=p_holds, p_fails=p_fails, verdict=decide(p_holds, p_fails, level))
            needed = None
            if one.row["verdict"] == "undetermined" and one.p_values != (1.0, 1.0):
                # with no more than Bonferroni's share of the level, as if this claim were decided first
                needed = one.result.needed(one.claim.tolerance, one.claim.test, level / len(members))
            one.row["needed"] = float("nan") if needed is None else float(needed)
            one.row["explanation"] = explanation(one.row, one.claim)
    return [one.row for one in judged]


def _checked(networks: pd.DataFrame, claims: Mapping[str, Claim]) -> pd.DataFrame:
    if networks.empty:
        raise ValueError("the table of networks has no rows; analyse at least one finished run")
    needed = {*CELL, "run", "seed", "draw", "converged"}
    for claim in (one for one in claims.values() if not one.along_training):
        expressions = f"{claim.measured} / {claim.predicted}".replace("(", " ").replace(")", " ").split()
        needed |= {word for word in expressions if word.isidentifier()}
    if missing := sorted(needed - set(networks.columns)):
        raise ValueError(
            f"the table of networks lacks {', '.join(missing)}; analyse the runs again, or leave out "
            "the claims that use them"
        )
    return usable(networks)


def _judge(key: str, claim: Claim, model: str, networks: pd.DataFrame) -> list[_Judged]:
    selected = networks.query(claim.selection) if claim.selection and len(networks) else networks
    if selected.empty:
        return []
    sides = selected.assign(
        measured=np.asarray(selected.eval(claim.measured), np.float64),
        predicted=np.asarray(selected.eval(claim.predicted), np.float64),
    )
    judged = [_measured(key, claim, model, "all", sides)]
    if "width" in claim.grouping and judged[0].row["cells"] and sides["width"].nunique() > 1:
        for width, group in sides.groupby("width", sort=True):
            judged.append(_measured(key, claim, model, f"width {width}", group))
    return judged


def _measured(key: str, claim: Claim, model: str, scope: str, sides: pd.DataFrame) -> _Judged:
    both = sides[["measured", "predicted"]]
    kept = sides[(np.isfinite(both) & (both > 0)).all(axis=1)]
    log_sides = kept[["measured", "predicted"]].apply(np.log)
    cell = kept.groupby(list(claim.grouping), sort=True).ngroup()
    ratios = kept[list(claim.factors)].assign(cell=cell, log_ratio=log_sides["measured"] - log_sides["predicted"])
    result = equivalence(ratios, claim.factors)
    excluded, total = len(sides) - len(kept), len(sides)
    note, p_values = result.note, result.p_values(claim.tolerance, claim.test)
    if excluded > MAX_EXCLUDED * total:
        note = "not available" if excluded == total else f"{excluded} of {total} networks excluded"
        note += _why(sides.drop(kept.index), claim.reason)
        p_values = (1.0, 1.0)
    means = np.exp(log_sides.groupby(cell).mean().mean())
    numbers = ("deviation", "error", "low", "high", "rms", "rms_low", "rms_high", "worst", "cells")
    row: dict[str, object] = {
        "claim": key,
        **{name: getattr(claim, name) for name in ("label", "sentence", "link", "test", "required", "tolerance")},
        "model": model,
        "scope": scope,
        "measured": float(means["measured"]),
        "predicted": float(means["predicted"]),
        **{name: getattr(result, name) for name in numbers},
        "networks": len(kept),
        "excluded": excluded,
        "note": note,
        "runs": sorted(set(kept["run"])),
    }
    family = ("all", claim.required) if scope == "all" else ("widths", key, model)
    return _Judged(row, claim, result, p_values, family)


def _why(excluded: pd.DataFrame, column: str) -> str:
    """The most frequent reason for which they have no number."""
    reasons = excluded.get(column, pd.Series(dtype=str)).replace("", np.nan).dropna()
    return "" if reasons.empty else f": {reasons.mode().iloc[0]}"


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
