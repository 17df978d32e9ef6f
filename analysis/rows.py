"""Rows of an analysis' tables: the columns that name a cell, and numbers that a row may have to do without."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ridgescope.analysis.runs import Cell
from ridgescope.train.config import cell_identity, model_name

Row = dict[str, Any]

LINEARISED = "linearised "  # before the model's name: such networks are a model of their own

# What has a column of its own, is averaged over, or says only how far and how closely training is watched.
_NAMED = {
    "data": ("name", "train_size"),
    "model": ("_target_", "width", "depth", "activation", "parameterisation"),
    "training": (
        "alpha", "linearised", "ridges", "num_seeds", "num_draws", "design", "seed", "tolerance", "measure_per_decade",
        "measure_kernels", "compile",
    ),
}  # fmt: skip

FOREIGN: Row = {
    "depth": 0, "activation": "", "parameterisation": "", "alpha": 1.0, "width": 0, "options": "{}", "training": "{}",
}  # fmt: skip
"""Of networks that this package did not build."""


def linearised(cell: Cell) -> bool:
    """Whether the cell's networks are linearised at their start."""
    return bool(cell.config.get("linearised", False))


def architecture(cell: Cell) -> str:
    """The model's name: 'mlp'."""
    return model_name(cell.config)


def identity(cell: Cell) -> Row:
    """The columns that say which cell a row belongs to.

    ``options`` (of data and model) and ``training`` are JSON objects of everything else in the config that changes what
    a cell measures, so that networks which differ in it are never averaged.
    """
    config, model = cell.config, cell.config["model"]
    options, training = _options(cell.config)
    return {
        "run": cell.name,
        "data": config["data"]["name"],
        "model": LINEARISED * linearised(cell) + architecture(cell),
        "width": int(model.get("width", 0)),
        "depth": int(model.get("depth", 0)),
        "activation": str(model.get("activation", "")),
        "parameterisation": str(model.get("parameterisation", "")),
        "alpha": float(config["alpha"]),
        "P": cell.train_size,
        "options": options,
        "training": training,
    }


def _options(config: Mapping[str, Any]) -> tuple[str, str]:
    rest = cell_identity(dict(config))
    parts = {part: rest.pop(part, {}) for part in ("data", "model")} | {"training": rest}
    if rest.get("stop", "optimum") == "optimum":  # then the number of steps is a limit only
        rest.pop("max_steps", None)
    left = {
        part: {name: value for name, value in values.items() if name not in _NAMED[part]}
        for part, values in parts.items()
    }
    options = dict(_flat(left["data"], "data.")) | dict(_flat(left["model"], "model."))
    training = dict(_flat(left["training"], ""))
    return json.dumps(options, sort_keys=True), json.dumps(training, sort_keys=True)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name == "_target_":
            yield prefix.rstrip("."), str(value).removeprefix("ridgescope.train.optimisers.")
        else:
            yield prefix + name, value


def determined(kernel: str, measure: Callable[[], Row]) -> Row:
    """What is measured with a kernel, or the reason why nothing is."""
    try:
        return measure()
    except ValueError as error:
        return {"undetermined": f"{kernel}: {error}"}


def joined(*rows: Row) -> Row:
    """All columns of the rows; their reasons become one."""
    together = {name: value for row in rows for name, value in row.items()}
    reasons = [row["undetermined"] for row in rows if row.get("undetermined")]
    return together | {"undetermined": "; ".join(dict.fromkeys(reasons))}
