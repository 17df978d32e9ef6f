"""Coordinate check: one setting of the optimiser along the whole dial of laziness and the whole width ladder.

Networks of every width, parameterisation and alpha take the same number of steps with the same learning rate, in the
units of :mod:`ridgescope.train.optimisers`. Recorded for each:

    loss       training risk after the steps / before them: it must fall, everywhere
    function   root mean square of f, which is 0 at the start: it must not depend on the width
    features   root mean square change of what the readout reads, relative to its start: flat in width N in mup at any
               alpha, where training is richest; falls as 1 / sqrt(N) in ntk where that is lazy, and as 1 / alpha

Source: the coordinate check of Yang et al. 2022, arXiv:2203.03466, appendix D.1; the dial is alpha of Chizat, Oyallon,
Bach 2019, arXiv:1812.07956. Slopes are those of log values over log N, by least squares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from ridgescope.analysis.drawing import LINE_STYLES, log_ticks, new_figure, paper_style, points
from ridgescope.models.network import Network
from ridgescope.train.data import PreparedData, RidgeData
from ridgescope.train.ensemble import Member, NetworkFactory, initialise
from ridgescope.train.errors import UserError
from ridgescope.train.optimisers import OptimiserFactory
from ridgescope.train.programs import fit
from ridgescope.train.training import EnsembleTraining

COORDINATES = {"loss": "loss / loss at the start", "function": "change of f", "features": "change of features"}


@dataclass(frozen=True)
class Setting:
    """What all networks share: one optimiser, the same steps on the full batch."""

    optimiser: OptimiserFactory
    steps: int
    num_seeds: int
    dtype: torch.dtype = torch.float64


def coordinates(
    factory: Callable[..., nn.Module],
    data: PreparedData,
    setting: Setting,
    *,
    parameterisations: Sequence[str],
    alphas: Sequence[float],
    widths: Sequence[int],
) -> pd.DataFrame:
    """One row per network: parameterisation, alpha, width, seed, and the coordinates of the module.

    ``factory`` takes ``width`` and ``parameterisation`` besides what :class:`NetworkFactory` says.
    """
    if min(setting.steps, setting.num_seeds) < 1:
        raise UserError(f"steps={setting.steps} and num_seeds={setting.num_seeds} must be at least 1")
    if not widths or not alphas or not parameterisations:
        raise UserError("widths, alphas and parameterisations must each name at least one")
    parts = []
    for name, width in product(parameterisations, widths):
        one = partial(factory, width=width, parameterisation=name)
        parts += [_moved(one, data, setting, alpha).assign(parameterisation=name, width=width) for alpha in alphas]
    return pd.concat(parts, ignore_index=True)


def _moved(factory: NetworkFactory, data: PreparedData, setting: Setting, alpha: float) -> pd.DataFrame:
    seeds = list(range(setting.num_seeds))
    network, initial = initialise(
        factory, in_shape=data.in_shape, num_outputs=data.num_outputs, seeds=seeds, dtype=setting.dtype
    )
    module = RidgeData(data)
    training = EnsembleTraining(
        network,
        initial,
        [Member(seed, 0, 0.0) for seed in seeds],
        inputs=module.inputs,
        targets=module.targets,
        alpha=alpha,
        optimiser=setting.optimiser,
        max_steps=setting.steps,
        stop="steps",
    )
    fit(training, module)
    x, theta = module.inputs[0], training.standing()
    start = float(module.targets[0].square().sum(1).mean())
    with torch.no_grad():
        moved = network.outputs(theta, x.expand(len(seeds), *x.shape)) - training.offset
        ends = (network.unflatten(initial), network.unflatten(theta))
        before, after = ([_features(factory, data, end, i, x) for i in seeds] for end in ends)
    return pd.DataFrame(
        {
            "alpha": alpha,
            "seed": seeds,
            "loss": (training.fits / start).tolist(),
            "function": (alpha * moved).square().mean((1, 2)).sqrt().tolist(),
            "features": [float((b - a).norm() / a.norm()) for a, b in zip(before, after, strict=True)],
        }
    )


def _features(
    factory: NetworkFactory, data: PreparedData, parameters: dict[str, torch.Tensor], index: int, x: torch.Tensor
) -> torch.Tensor:
    network = factory(in_shape=data.in_shape, num_outputs=data.num_outputs, generator=torch.Generator(), dtype=x.dtype)
    if not isinstance(network, Network):
        raise UserError(f"{type(network).__name__} has no features to check; choose model=mlp or model=cnn")
    network.load_state_dict({name: value[index] for name, value in parameters.items()})
    return network.features(x)


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Per parameterisation and alpha: the slope in width of each coordinate, and the worst loss of any network."""
    rows: list[dict[str, Any]] = []
    for (name, alpha), group in table.groupby(["parameterisation", "alpha"], sort=False):
        mean = group.groupby("width")[list(COORDINATES)].mean()
        row: dict[str, Any] = {"parameterisation": name, "alpha": alpha, "worst_loss": _worst(group["loss"])}
        for column in ("function", "features"):
            row[column] = float("nan")
            if len(mean) > 1 and np.isfinite(mean[column]).all() and (mean[column] > 0).all():
                row[column] = float(np.polyfit(np.log(mean.index.to_numpy(float)), np.log(mean[column]), 1)[0])
        rows.append(row)
    return pd.DataFrame(rows)


def _worst(losses: pd.Series) -> float:
    return float(losses.max()) if np.isfinite(losses).all() else float("inf")


def coordinate_figure(table: pd.DataFrame) -> Figure:
    """A row per parameterisation, a column per coordinate, a line per alpha; mean over seeds, one standard error."""
    names, alphas = list(table["parameterisation"].unique()), sorted(table["alpha"].unique())
    groups = table.groupby(["parameterisation", "alpha", "width"])[list(COORDINATES)]
    summary = groups.mean().join(groups.sem().add_suffix("_se")).reset_index()
    with paper_style():
        figure = new_figure(0.6 + 2.1 * len(names))
        grid = figure.subplots(len(names), len(COORDINATES), squeeze=False, sharex=True, sharey="col")
        for (row, name), (column, coordinate) in product(enumerate(names), enumerate(COORDINATES)):
            axes = grid[row, column]
            for alpha, style in zip(alphas, LINE_STYLES, strict=False):
                rows = summary[(summary["parameterisation"] == name) & (summary["alpha"] == alpha)]
                points(axes, rows, "width", coordinate, **style)
            axes.set_yscale("log")
            log_ticks(axes, table["width"])
            axes.set_title(f"{name}: {COORDINATES[coordinate]}")
            if row == len(names) - 1:
                axes.set_xlabel("width N")
        lines = [Line2D([], [], label=f"{a:g}", **style) for a, style in zip(alphas, LINE_STYLES, strict=False)]
        figure.legend(handles=lines, loc="outside right upper", title="alpha")
    return figure
