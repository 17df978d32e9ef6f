"""From networks to cells: averages over seeds and draws, and what the effective ridge of a cell is made of.

A *setting* is what an experiment holds fixed (data, model, how it is trained, ...); a *cell* is a setting at one
width, sample size P and ridge lam. The networks of a cell differ in the initialisation seed and in the
draw of the training set.
"""

import json
from typing import Any

import numpy as np
import pandas as pd

ARCHITECTURE = ("data", "model", "depth", "activation", "parameterisation", "options")  # what decides a kernel
SETTING = (*ARCHITECTURE, "alpha", "training")
CELL = (*SETTING, "width", "P", "ridge")

# These exist for any network but mean something only where training reached its optimum.
TRAINED_COLUMNS = (
    "network_test",
    "network_train",
    "network_accuracy",
    "krr_final_test",
    "kappa_final",
    "kappa_risk",
    "kernel_movement",
)


def cells(networks: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error (``*_se``) of every measured column over the networks of a cell.

    The error is the larger of the spread over draws and the spread over seeds, so that networks that
    share a training set never count as independent of it. Adds setting (the model's label),
    kappa_*deviation, networks, excluded and runs. Columns that depend on training average the converged
    networks only; a network that did not converge counts as excluded.
    """
    networks = usable(networks).assign(
        setting=setting_labels(networks),
        # of each network, before averaging: numerator and denominator share most of their scatter
        kappa_deviation=networks["kappa_entk"] / networks["theory_width_kappa1"] - 1,
        kappa_infinite_deviation=networks["kappa_infinite"] / networks["theory_kappa"] - 1,
    )
    networks["kappa_network_deviation"] = networks["kappa_risk"] / networks["kappa_entk"] - 1
    identity = {*CELL, "run", "member", "seed", "draw", "steps", "setting"}
    numeric = [
        column
        for column in networks.select_dtypes(["number"]).columns
        # errors that one network brings along are replaced by the spread that was seen
        if column not in identity and not column.endswith(("_se", "_se_log"))
    ]
    networks[numeric] = networks[numeric].replace([np.inf, -np.inf], np.nan)
    keys = list(CELL)
    grouped = networks.groupby(keys, sort=True, dropna=False)
    mean = grouped[numeric].mean()
    errors = [
        networks.groupby([*keys, factor], dropna=False)[numeric].mean().groupby(level=keys, dropna=False).sem()
        for factor in ("draw", "seed")
    ]
    error = errors[0].combine(errors[1], np.fmax).add_suffix("_se")
    table = pd.concat([mean, error], axis=1)
    table["setting"] = grouped["setting"].first()
    table["networks"] = grouped["converged"].sum().astype(int)
    table["excluded"] = grouped.size() - table["networks"]
    table["runs"] = grouped["run"].agg(lambda runs: sorted(set(runs)))
    return table.reset_index()


def kappa_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Split the effective ridge of each cell into its explicit, finite-data and finite-width parts.

    ``lam <= kappa_1 <= kappa_2`` with ``df1 = P (1 - lam/kappa_1)`` and ``kappa_2 = kappa_1/(1 - df1/N_eff)``
    (arXiv:2311.14646 for two renormalisations in this order): explicit = lam, data = kappa_1 - lam, width =
    kappa_2 - kappa_1. kappa_1 is the measured resolvent of the network's kernel at initialisation. Takes the
    table of ``cells``, returns it with explicit, data_part, width_part and kappa_2; NaN where N_eff <= df1,
    where a random-feature model of that width would interpolate and has no kappa_2.
    """
    df1 = table["P"] * (1 - table["ridge"] / table["kappa_entk"])
    # 1/N_eff is unbiased and may come out below zero where the width is not felt: that is no width part
    remaining = 1 - df1 * table["inverse_width"].clip(lower=0.0)
    kappa_2 = (table["kappa_entk"] / remaining).where(remaining > 0)
    return table.assign(
        explicit=table["ridge"],
        data_part=table["kappa_entk"] - table["ridge"],
        width_part=kappa_2 - table["kappa_entk"],
        kappa_2=kappa_2,
    )


def setting_labels(networks: pd.DataFrame) -> pd.Series:
    """The model's name, followed by whatever else differs between networks of that model ('mlp, alpha 1')."""
    labels = networks["model"].astype(str)
    for column in SETTING:
        varies = networks.groupby("model")[column].transform("nunique") > 1
        if column in ("options", "training"):
            labels += _differing(networks, column)
        elif column != "model" and varies.any():
            value = networks[column].map(_shown)
            labels = labels.where(~varies, labels + f", {column} " + value)
    return labels


def _differing(networks: pd.DataFrame, column: str) -> pd.Series:
    """Of each network's options those that another network of its model has otherwise: ', readout pool'."""
    options = networks[column].map(json.loads)
    words = {}
    for _, mine in options.groupby(networks["model"].to_numpy()):
        names = sorted({name for some in mine for name in some})
        differ = [name for name in names if mine.map(lambda some, name=name: json.dumps(some.get(name))).nunique() > 1]
        for row, some in mine.items():
            words[row] = "".join(f", {name.rpartition('.')[2]} {_shown(some.get(name))}" for name in differ)
    return pd.Series(words, dtype=object).reindex(networks.index)


def _shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return "none" if value is None else str(value)


def usable(networks: pd.DataFrame) -> pd.DataFrame:
    """``networks`` with everything that depends on training blanked where training did not converge."""
    trained = [column for column in TRAINED_COLUMNS if column in networks]
    blank = networks[trained].where(networks["converged"].astype(bool), axis=0)
    return networks.assign(**{column: blank[column] for column in trained})
