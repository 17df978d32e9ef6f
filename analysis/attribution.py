"""Risk attribution: the terms of a measured risk beside those of the theory, for every crossed cell of an experiment.

The theory's six terms join to the four that a crossed design can tell apart, because label noise is redrawn with the
training set: bias = bias^2 + noise, data variance = Var_X + Var_noise, initialisation variance = Var_F, interaction =
Var_XF + Var_Fnoise. Training sets of P points drawn from one pool of M overlap by P/M, which moves a part of the data
variance into the bias; the theory is evaluated for that overlap. It is the finite-width law where the architecture has
one, else ridge regression with N_eff independent features (docs/attribution.md).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridgescope.analysis.crossed import TERMS, Combination, CrossRisks, bag, cross_risks, ensemble
from ridgescope.analysis.resample import Estimate
from ridgescope.theory import PairRisks, PoolEstimator

ATTRIBUTION_COLUMNS = (
    "run", "data", "model", "width", "P", "ridge", "alpha", "who", "term", "measured", "se", "low", "high", "predicted",
    "theory", "predicted_width", "deviation", "z", "verdict", "predicted_sets", "se_sets", "deviation_sets",
    "verdict_sets", "networks", "excluded", "seeds", "draws", "needed", "note",
)  # fmt: skip

# the finite-width law's four cross risks in a table of networks, in the order of ``analysis.crossed``
CROSS_COLUMNS = ("block_pool_test", "block_pool_same_seed", "block_pool_same_draw", "block_pool_neither")
# the same at the training sets of the cell's own draws
SETS_COLUMNS = ("block_sets_test", "block_sets_same_seed", "block_sets_same_draw", "block_sets_neither")


def theory_cross_risks(prediction: PairRisks, overlap: float) -> Tensor:
    """The four cross risks of ``analysis.crossed`` as the theory has them, for training sets that overlap so much."""
    pairs = ((True, 1.0), (True, overlap), (False, 1.0), (False, overlap))  # who shares features, and data
    return torch.tensor(
        [prediction.cross_risk(same_features=same, overlap=share) for same, share in pairs], dtype=torch.float64
    )


def predicted_cross_risks(
    estimator: PoolEstimator, num_samples: int, ridge: float, inverse_width: float
) -> Tensor | None:
    """At the effective width 1/inverse_width (infinite at or below zero); None where the theory has no prediction."""
    width = 1 / inverse_width if inverse_width > 0 else math.inf
    try:
        prediction = estimator.predict(num_samples, ridge, width)
    except ValueError:
        return None
    return theory_cross_risks(prediction, num_samples / estimator.size)


def quantities(num_seeds: int, num_draws: int) -> dict[str, Combination]:
    """Everything that is compared: the terms, ensembles of 2, 4, ... seeds and bags of 2, 4, ... draws."""
    chosen: dict[str, Combination] = dict(TERMS)
    chosen |= {f"ensemble of {e}": ensemble(e) for e in _powers_of_two(num_seeds)}
    return chosen | {f"bag of {b}": bag(b) for b in _powers_of_two(num_draws)}


def _powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(1, int(math.log2(most)) + 1)]


def attribute(
    residuals: Tensor,
    seeds: Sequence[int],
    draws: Sequence[int],
    *,
    predicted: Tensor | None,
    at_sets: Tensor | None = None,
    tolerance: float = 0.15,
    precision: float = 0.01,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per term, ensemble and bag: measured with its interval, predicted, and a verdict.

    ``residuals`` (n, T, C) are f - y of the networks on the same test points, ``predicted`` (4,) the theory's cross
    risks, ``at_sets`` (4,) those of the law at these draws and test points: its error bar and verdict know no other
    draws, only other seeds. holds: the 90 % interval lies within ``tolerance`` of the predicted value; fails: wholly
    outside; undetermined: anything else, and ``note`` says which design would decide. ``needed`` is the design (seeds x
    draws) of fewest networks with standard errors below ``precision`` times the risk. Raises as ``cross_risks``.
    """
    found = cross_risks(residuals, seeds, draws, generator=torch.Generator().manual_seed(seed))
    needed = _design(found.networks_for(precision))
    rows = []
    for name, combination in quantities(found.num_seeds, found.num_draws).items():
        theory, at_these = (_at(risks, combination) for risks in (predicted, at_sets))
        row = _row(name, found, combination, theory, tolerance) | _at_these(found, combination, at_these, tolerance)
        rows.append(row | {"needed": needed})
    return rows


def _at(risks: Tensor | None, combination: Combination) -> float:
    return math.nan if risks is None else float(risks @ torch.tensor(combination, dtype=torch.float64))


def _design(design: tuple[int, int] | None) -> str:
    return "more test points" if design is None else f"{design[0]} seeds x {design[1]} draws"


def _row(name: str, found: CrossRisks, combination: Combination, theory: float, tolerance: float) -> dict[str, Any]:
    one = found.estimate(combination)
    note, verdict = "", _verdict(one, theory, tolerance)
    if math.isnan(theory):
        note = "no theory for this kernel"
    elif verdict == "undetermined":
        # an error of half the tolerance leaves room for the interval on either side
        share = tolerance * theory / 2 / float(found.values[0])
        note = "the interval crosses the tolerance"
        if share > 0:
            note += f"; {_design(found.networks_for(share, [combination]))} would decide"
    return {
        "term": name,
        "measured": one.value,
        "se": one.se,
        "low": one.low,
        "high": one.high,
        "predicted": theory,
        "deviation": one.value / theory - 1 if theory > 0 else math.nan,
        "z": (one.value - theory) / one.se if one.se > 0 else math.nan,
        "verdict": verdict,
        "note": note,
        "networks": found.num_networks,
        "seeds": found.num_seeds,
        "draws": found.num_draws,
    }


def _at_these(found: CrossRisks, combination: Combination, theory: float, tolerance: float) -> dict[str, Any]:
    """The law at the very draws and test points of the design, where only the seeds are random."""
    if math.isnan(theory):
        return {}
    one = found.estimate(combination).at_these
    return {
        "predicted_sets": theory,
        "se_sets": one.se,
        "deviation_sets": one.value / theory - 1 if theory > 0 else math.nan,
        "verdict_sets": _verdict(one, theory, tolerance),
    }


def _verdict(one: Estimate, theory: float, tolerance: float) -> str:
    allowed = tolerance * theory
    if theory - allowed <= one.low and one.high <= theory + allowed:
        return "holds"
    if one.high < theory - allowed or one.low > theory + allowed:
        return "fails"
    return "undetermined"


def attribute_cell(
    rows: pd.DataFrame,
    predictions: Mapping[str, Tensor],
    targets: Tensor,
    estimator: PoolEstimator | None,
    *,
    tolerance: float = 0.15,
    precision: float = 0.01,
) -> list[dict[str, Any]]:
    """Attribution of one crossed cell, for each ridge, of the trained networks and of their kernels at initialisation.

    ``rows`` are the cell's rows of ``networks`` in the order of ``predictions`` ("network", "kernel": (E, T, C), on the
    test points with ``targets`` (T, C)). Networks that did not reach their optimum are left out and counted, as are
    kernels that cannot carry the ridge. ``predicted`` is of the law in ``CROSS_COLUMNS``, where it is known, else of
    the theory at N_eff, which ``predicted_width`` always is; ``theory`` says which. ``predicted_sets``: of the law in
    ``SETS_COLUMNS``, for these training sets and no others.
    """
    table: list[dict[str, Any]] = []
    for ridge, part in rows.groupby("ridge", sort=True):
        at_width, predicted, at_sets = None, _law(part, CROSS_COLUMNS), _law(part, SETS_COLUMNS)
        inverse = part["inverse_width"].mean()
        if estimator is not None and inverse == inverse:
            at_width = predicted_cross_risks(estimator, int(part["P"].iloc[0]), float(ridge), float(inverse))  # type: ignore[arg-type]
        theory = "N_eff" if predicted is None else "finite-width law"
        predicted = at_width if predicted is None else predicted
        for who in ("network", "kernel"):
            kept = part[part["converged"].astype(bool) if who == "network" else part["krr_test"].notna()]
            identity = {name: part[name].iloc[0] for name in ("run", "data", "model", "width", "P", "ridge", "alpha")}
            identity |= {"who": who, "excluded": len(part) - len(kept)}
            residuals = predictions[who][kept["member"].tolist()] - targets
            labels = (kept["seed"].tolist(), kept["draw"].tolist())
            try:
                found = attribute(
                    residuals, *labels, predicted=predicted, at_sets=at_sets, tolerance=tolerance, precision=precision
                )
            except ValueError as error:
                nothing = {"term": "risk", "verdict": "undetermined", "note": str(error), "networks": len(kept)}
                found = [nothing]
            table += [identity | row | _beside(row, theory, at_width) for row in found]
    return table


def _law(rows: pd.DataFrame, columns: Sequence[str]) -> Tensor | None:
    """A law's cross risks, which are the same for all networks of a cell; None where it has none."""
    values = rows.reindex(columns=list(columns)).iloc[0].astype("float64")
    return None if values.isna().any() else torch.tensor(values.to_numpy(), dtype=torch.float64)


def _beside(row: Mapping[str, Any], theory: str, at_width: Tensor | None) -> dict[str, Any]:
    """Which theory ``predicted`` is of, and the same term with N_eff independent features."""
    if "seeds" not in row:  # a design that could not be split
        return {}
    combination = quantities(row["seeds"], row["draws"])[row["term"]]
    named = theory if row["predicted"] == row["predicted"] else ""
    return {"theory": named, "predicted_width": _at(at_width, combination)}
