"""The regime map: where kernel regression describes the trained networks, and with which kernel.

    initial       the network's test risk is that of regression with its kernel at initialisation
    final         it is not, but that of regression with its kernel after training
    neither       it is neither
    not initial   it is not that with the kernel at initialisation; of the other too few networks say
    undetermined  too few networks to say

Each is an equivalence test of one cell (``equivalence``), corrected for the number of tests of the map (Holm). A cell
is one laziness alpha, width, sample size and ridge.
"""

import numpy as np
import pandas as pd

from ridgescope.analysis.cells import CELL, setting_labels, usable
from ridgescope.analysis.equivalence import Equivalence, decide, equivalence, holm

MAX_EXCLUDED = 0.20  # a cell that lost more of its networks is undetermined
ENOUGH_CELLS = 4  # fewer make no map
TOLERANCE = 0.05
REGIMES = ("initial", "final", "neither", "not initial", "undetermined")
SIDES = {"initial": "krr_test", "final": "krr_final_test"}  # of each test; the other side is network_test


def regime_map(networks: pd.DataFrame, *, tolerance: float = TOLERANCE, level: float = 0.05) -> pd.DataFrame:
    """One row per cell: the columns of ``CELL``; initial, initial_low, initial_high, initial_verdict (network over
    kernel minus one, 90 % interval, at ``tolerance``), the same for final; movement of the kernel; networks, excluded,
    regime.

    ``networks`` as in ``verdict.evaluate``. Networks that did not reach their optimum are excluded and counted.
    """
    rows, tests = [], []
    needed = (*CELL, "seed", "draw", "kernel_movement", "network_test", *SIDES.values())
    networks = usable(networks)
    networks = networks[[name for name in needed if name in networks]]
    for place, cell in networks.groupby(list(CELL), sort=True, dropna=False):
        row = dict(zip(CELL, place, strict=True))
        trained = cell["network_test"].notna()
        row |= {"networks": int(trained.sum()), "excluded": int((~trained).sum())}
        row["movement"] = float(cell["kernel_movement"].mean()) if "kernel_movement" in cell else np.nan
        for side, column in SIDES.items():
            found = _compare(cell, column)
            row |= {side: found.deviation, f"{side}_low": found.low, f"{side}_high": found.high}
            tests.append((1.0, 1.0) if _lost(cell, column) else found.p_values(tolerance, "mean"))
        rows.append(row)
    p_holds, p_fails = (holm([test[i] for test in tests]) for i in range(2))
    verdicts = [decide(*pair, level) for pair in zip(p_holds.tolist(), p_fails.tolist(), strict=True)]
    for row, initial, final in zip(rows, verdicts[::2], verdicts[1::2], strict=True):
        row |= {"initial_verdict": initial, "final_verdict": final, "regime": _regime(initial, final)}
    return pd.DataFrame(rows)


def maps(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of ``regime_map`` by model: a map holds all laziness alpha of one model; small ones are left out."""
    labels = setting_labels(table.assign(alpha=0.0))
    groups = {str(label): rows for label, rows in table.groupby(labels, sort=False)}
    return {
        label: rows for label, rows in groups.items() if len(rows) >= ENOUGH_CELLS and rows["initial"].notna().any()
    }


def _compare(cell: pd.DataFrame, column: str) -> Equivalence:
    sides = cell[["network_test", column]]
    kept = cell[(np.isfinite(sides) & (sides > 0)).all(axis=1)]
    ratio = np.log(kept["network_test"]) - np.log(kept[column])
    return equivalence(kept[["draw", "seed"]].assign(cell=0, log_ratio=ratio), ["draw", "seed"])


def _lost(cell: pd.DataFrame, column: str) -> bool:
    missing = cell[["network_test", column]].isna().any(axis=1)
    return bool(missing.mean() > MAX_EXCLUDED)


def _regime(initial: str, final: str) -> str:
    if initial != "fails":
        return "initial" if initial == "holds" else "undetermined"
    return {"holds": "final", "fails": "neither"}.get(final, "not initial")
