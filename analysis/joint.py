"""Every route to kappa against the spectrum's, and whether all agree at once: Hotelling's test over training sets.

Letters: d training sets (draws), k differences of log kappa.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ridgescope.analysis.audit import ROUTES

# What the spectrum predicts for kappa must be zero on average, for each of these routes.
JOINT_ROUTES = ("resolvent", "left_out", "loo", "ratio")


@dataclass(frozen=True)
class Joint:
    """Hotelling's T^2 as an F value with its degrees of freedom and p-value; NaN and a note where undetermined."""

    statistic: float
    p_value: float
    degrees: tuple[int, int]
    note: str = ""


def joint_test(rows: pd.DataFrame, routes: Sequence[str] = JOINT_ROUTES) -> Joint:
    """Whether log(kappa_route/kappa_spectrum) is zero on average over draws, jointly for ``routes``.

    The draws of one pool are uncorrelated given the pool, whose own error the theory's kappa shares
    (``pool_kappa_errors``), so the scatter over draws is the error. This asks for exact agreement: with many draws it
    sees differences that no tolerance cares about. Undetermined with fewer than k + 2 draws.
    """
    logs = np.log(rows[[f"kappa_{route}" for route in routes]].to_numpy(np.float64))
    found = logs - np.log(rows["kappa_spectrum"].to_numpy(np.float64))[:, None]
    found = found[np.isfinite(found).all(axis=1)]
    d, k = found.shape
    if d < k + 2:
        nothing = Joint(math.nan, math.nan, (k, max(d - k, 0)))
        return Joint(*list(vars(nothing).values())[:3], f"{d} draws; {len(routes)} routes need {k + 2}")
    mean, covariance = found.mean(axis=0), np.cov(found.T)
    t_squared = d * float(mean @ np.linalg.solve(covariance, mean))
    f = t_squared * (d - k) / (k * (d - 1))
    return Joint(f, float(special.fdtrc(k, d - k, f)), (k, d - k))


def kappa_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per pool, P and ridge: kappa by the spectrum, every other route relative to it with its error over draws,
    the share of that scatter which Gaussian points would show, the joint test, and the risk."""
    rows = []
    for (model, size, ridge), part in table.groupby(["model", "P", "ridge"], sort=False):
        row: dict[str, Any] = {"model": model, "P": size, "ridge": ridge, "kappa": part["kappa_spectrum"].mean()}
        row["kappa_se_log"] = part["kappa_spectrum_se_log"].mean()
        for route in ROUTES[1:]:
            logs = np.log(part[f"kappa_{route}"] / part["kappa_spectrum"]).dropna()
            row[route] = np.expm1(logs.mean()) if len(logs) else np.nan
            row[f"{route}_se"] = logs.std() / np.sqrt(len(logs)) if len(logs) > 1 else np.nan
            row[f"{route}_scatter"] = logs.std() / part[f"kappa_{route}_se_log"].mean() if len(logs) > 1 else np.nan
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
