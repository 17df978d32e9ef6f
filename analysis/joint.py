"""Every route to kappa against the spectrum's, and whether all agree at once: Hotelling's test over training sets.

Letters: d training sets (draws), k differences of log kappa.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ridgescope.analysis.audit import ROUTES

# Each must be equal: the route, and what it is compared with.
PAIRS = (("resolvent", "spectrum"), ("left_out", "resolvent"), ("loo", "resolvent"), ("ratio", "resolvent"))


@dataclass(frozen=True)
class Joint:
    """Hotelling's T^2 as an F value with its degrees of freedom and p-value; NaN and a note where undetermined."""

    statistic: float
    p_value: float
    degrees: tuple[int, int]
    note: str = ""


def joint_test(rows: pd.DataFrame) -> Joint:
    """Whether log kappa agrees on average over draws for all of ``PAIRS``, jointly.

    rows: of one pool, P and ridge, with the pool's size in ``points``. Draws of one pool share points, and a mean over
    d sets that each take a share s of the pool has variance (1/d + s/(1-s)) times the scatter between them: s = P/M
    for what is read off training sets, and the larger of P/M and 1 - P/M for risks on the rest. The resolvent against
    the spectrum is the exception: the pool's own error is in both (``pool_kappa_errors``). This asks for exact
    agreement: with enough draws and points it sees differences that no tolerance cares about. Undetermined with fewer
    than 6 draws.
    """
    logs = {route: np.log(rows[f"kappa_{route}"].to_numpy(np.float64)) for pair in PAIRS for route in pair}
    found = np.stack([logs[one] - logs[other] for one, other in PAIRS], axis=1)
    found = found[np.isfinite(found).all(axis=1)]
    d, k = found.shape
    if d < k + 2:
        return Joint(math.nan, math.nan, (k, max(d - k, 0)), f"{d} draws; {k} differences need {k + 2}")
    share = float((rows["P"] / rows["points"]).iloc[0])
    shares = np.array([0.0, share, share, max(share, 1 - share)])
    mean = found.mean(axis=0) / np.sqrt(1 + d * shares / (1 - shares))
    t_squared = d * float(mean @ np.linalg.solve(np.cov(found.T), mean))
    f = t_squared * (d - k) / (k * (d - 1))
    return Joint(f, float(special.fdtrc(k, d - k, f)), (k, d - k))


def kappa_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per pool, P and ridge: kappa by the spectrum, every other route over it with its error over draws,
    its scatter over that of Gaussian points, the prediction for points as uneven as the pool's, the joint test, and
    the risk."""
    rows = []
    for (model, size, ridge), part in table.groupby(["model", "P", "ridge"], sort=False):
        row: dict[str, Any] = {"model": model, "P": size, "ridge": ridge, "kappa": part["kappa_spectrum"].mean()}
        row["kappa_se_log"] = part["kappa_spectrum_se_log"].mean()
        for route in ROUTES[1:]:
            logs = (part[f"kappa_{route}"] / part["kappa_spectrum"]).dropna().apply(np.log)
            row[route] = np.expm1(logs.mean()) if len(logs) else np.nan
            row[f"{route}_se"] = logs.std() / np.sqrt(len(logs)) if len(logs) > 1 else np.nan
            row[f"{route}_scatter"] = logs.std() / part[f"kappa_{route}_se_log"].mean() if len(logs) > 1 else np.nan
        for kind in ("uneven_modes", "uneven_resolvent"):
            row[kind] = part[kind].mean() / part["kappa_spectrum"].mean() - 1
        joint = joint_test(part)
        row |= {"joint_p": joint.p_value, "joint_note": joint.note, "draws": len(part)}
        row["risk"] = part["risk_test"].mean()
        row["risk_deviation"] = part["risk_test"].mean() / part["risk_theory"].mean() - 1
        row["gcv"] = part["risk_gcv"].mean() / part["risk_test"].mean() - 1
        row["loo_risk"] = part["risk_loo"].mean() / part["risk_test"].mean() - 1
        row["unevenness"] = part["unevenness"].mean()
        row["unevenness_gaussian"] = part["unevenness_gaussian"].mean()
        rows.append(row)
    return pd.DataFrame(rows)
