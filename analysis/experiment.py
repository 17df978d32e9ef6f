"""From the cells of an experiment to its tables: measure what is not measured yet, then project.

<experiment>/cells/<cell>/            written by training
<experiment>/measurements/<cell>.parquet     one row per network; kept, so an interrupted analysis goes on
<experiment>/measurements/<cell>.safetensors predictions on the test points, of crossed designs
<experiment>/laws/<cell>.parquet             the finite-width law, one row per ridge and draw
<experiment>/stopping/<cell>.parquet         gradient flow beside a trajectory, one row per network and measured time
<experiment>/report/                  the page, figures and tables
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ridgescope.analysis.attribution import ATTRIBUTION_COLUMNS, attribute_cell
from ridgescope.analysis.cells import ARCHITECTURE, SETTING
from ridgescope.analysis.infinite import PoolKernels, infinite_width, pool_kernels, theory_at_width
from ridgescope.analysis.laws import LAWS, BlockLaws
from ridgescope.analysis.measure import COLUMNS, measure_group
from ridgescope.analysis.rows import Row, architecture, identity
from ridgescope.analysis.runs import Cell, finished_cells, load_cell
from ridgescope.analysis.stopping import (
    STOPPING,
    FlowTheory,
    has_flow,
    infinite_flow_rows,
    measured_times,
    stopping_rows,
)
from ridgescope.models import KernelStore
from ridgescope.train.data import PreparedData
from ridgescope.train.errors import UserError
from ridgescope.train.files import read_tensors, write_atomically, write_tensors
from ridgescope.train.progress import progress, say

SPECTRUM_COLUMNS = (*ARCHITECTURE, "kernel", "index", "eigenvalue", "target_power")
MEASUREMENT = 5  # version of a measurement's columns; another one is measured again


@dataclass(frozen=True)
class Tables:
    """``networks``: a row per trained network; ``infinite``: a row per draw, size and ridge of each infinite-width
    kernel; ``spectra``: eigenvalues and target power of each kernel's pool; ``attribution``: a row
    per term, ridge and crossed cell; ``stopping``: a row per network and measured time of gradient flow (empty where
    none was asked for); ``unfinished``: names of cells left out."""

    networks: pd.DataFrame
    infinite: pd.DataFrame
    spectra: pd.DataFrame
    attribution: pd.DataFrame
    stopping: pd.DataFrame
    unfinished: list[str]


def project(experiment: Path, *, infinite_draws: int = 32, kernels: KernelStore | None = None) -> Tables:
    """Measure and project every finished cell. No network is trained; measured cells are read back.

    The theory speaks of the average over training sets. Infinite-width kernels are cheap, so they are averaged over
    ``infinite_draws`` of them; networks have the draws they were trained on. ``kernels`` keeps tangent kernels for
    later analyses.
    """
    if infinite_draws < 1:
        raise UserError(f"infinite_draws={infinite_draws} must be at least 1; 32 gives about 1 % at 100 samples")
    done, unfinished = finished_cells(experiment)
    if not done:
        raise UserError(f"no cell of {experiment} is finished; run the training to its end first")
    groups: dict[str, list[Cell]] = defaultdict(list)
    for folder in done:
        cell = load_cell(folder)
        groups[_key(cell, without_size=True)].append(cell)
    architectures = _Architectures()
    frames: list[pd.DataFrame] = []
    total = sum(len(cell.members) for cells in groups.values() for cell in cells)
    with progress("measuring networks", total) as steps:
        for cells in groups.values():
            frames += _measure_cells(experiment, cells, architectures, steps.advance, kernels)
    networks = _with_theory_at_width(pd.concat(frames, ignore_index=True), architectures)
    cells = [cell for group in groups.values() for cell in group]
    networks = _with_block_law(experiment, cells, networks, architectures)
    infinite = [_infinite_rows(cell, architectures, infinite_draws) for cell in _one_per_size(cells)]
    spectra = [_spectrum(name, pool) for name, pool in architectures.pools()]
    attribution = [_attribution(experiment, cell, networks, architectures) for cell in cells if _is_crossed(cell)]
    return Tables(
        networks,
        _concatenate(infinite),
        _concatenate(spectra, SPECTRUM_COLUMNS),
        _concatenate(attribution, ATTRIBUTION_COLUMNS),
        _stopping(experiment, cells, architectures, infinite_draws, kernels),
        [path.name for path in unfinished],
    )


def _stopping(
    experiment: Path, cells: list[Cell], architectures: "_Architectures", num_draws: int, kernels: KernelStore | None
) -> pd.DataFrame:
    """Gradient flow beside every trajectory of it; the infinite-width kernel once for cells that differ in width."""
    flowing = [cell for cell in cells if has_flow(cell)]
    if not flowing:
        return pd.DataFrame()
    frames = []
    with progress("early stopping", len(flowing)) as steps:
        for cell in flowing:
            path = experiment / "stopping" / f"{cell.name}.parquet"
            if not _is_current(path, version=STOPPING):
                _write(path, stopping_rows(cell, cell.data(), kernels), version=STOPPING)
            frames.append(pd.read_parquet(path))
            steps.advance()
    of_networks = {cell.name: frame for cell, frame in zip(flowing, frames, strict=True)}
    theories: dict[str, FlowTheory] = {}
    for cell in _one_per_size(flowing):
        pool = architectures.of(cell.name)
        if pool is not None:
            theory = theories.setdefault(architectures.of_run[cell.name], FlowTheory(pool))
            times = measured_times(of_networks[cell.name])
            frames.append(infinite_flow_rows(cell, cell.data(num_draws=num_draws), theory, times))
    return _concatenate(frames)


def _is_crossed(cell: Cell) -> bool:
    """Every seed with every draw: predictions are kept, and the risk is split into its terms."""
    return str(cell.config["design"]) == "crossed"


def _attribution(experiment: Path, cell: Cell, networks: pd.DataFrame, architectures: "_Architectures") -> pd.DataFrame:
    pool = architectures.of(cell.name)
    rows = networks[networks["run"] == cell.name]
    predictions = read_tensors(experiment / "measurements" / f"{cell.name}.safetensors")
    targets = cell.data().test_targets
    terms = attribute_cell(rows, predictions, targets, None if pool is None else pool.estimator)
    return pd.DataFrame(terms, columns=list(ATTRIBUTION_COLUMNS))


def _concatenate(frames: list[pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))


def _one_per_size(cells: list[Cell]) -> list[Cell]:
    """Of the cells that differ in width alone the widest: they share the infinite-width kernel."""
    chosen: dict[tuple[Any, ...], Cell] = {}
    for cell in sorted(cells, key=lambda cell: int(cell.config["model"].get("width", 0))):
        row = identity(cell)
        kernel = _key(cell, without_width=True)  # of the standard parameterisation it depends on the width
        chosen[(*(row[name] for name in SETTING), cell.train_size, kernel)] = cell
    return list(chosen.values())


def _infinite_rows(cell: Cell, architectures: "_Architectures", num_draws: int) -> pd.DataFrame:
    pool = architectures.of(cell.name)
    if pool is None:
        return pd.DataFrame()
    rows = infinite_width(cell, cell.data(num_draws=num_draws), pool)
    return pd.DataFrame(rows)


class _Architectures:
    """Infinite-width kernels and the pool's decomposition, once for all cells that share data and architecture."""

    def __init__(self) -> None:
        self._pools: dict[str, PoolKernels | None] = {}
        self._names: dict[str, Row] = {}
        self.of_run: dict[str, str] = {}

    def get(self, cell: Cell, data: PreparedData) -> PoolKernels | None:
        key = _key(cell, without_size=True, without_width=True)
        self.of_run[cell.name] = key
        if key not in self._pools:
            names = identity(cell)
            self._names[key] = {name: names[name] for name in ARCHITECTURE} | {"model": architecture(cell)}
            try:
                self._pools[key] = pool_kernels(cell.network(data), data)
            except ValueError as error:
                say(f"no infinite-width theory for {names['model']}: {error}")
                self._pools[key] = None
        return self._pools[key]

    def of(self, run: str) -> PoolKernels | None:
        return self._pools[self.of_run[run]]

    def pools(self) -> list[tuple[Row, PoolKernels]]:
        return [(self._names[key], pool) for key, pool in self._pools.items() if pool is not None]


def _measure_cells(
    experiment: Path,
    cells: list[Cell],
    architectures: _Architectures,
    advance: Callable[..., None],
    kernels: KernelStore | None,
) -> list[pd.DataFrame]:
    datas = [cell.data() for cell in cells]
    pool = architectures.get(cells[0], datas[0])
    for cell, data in zip(cells[1:], datas[1:], strict=True):
        architectures.get(cell, data)
    paths = [experiment / "measurements" / f"{cell.name}.parquet" for cell in cells]
    todo = [
        i
        for i, path in enumerate(paths)
        if not _is_current(path, version=MEASUREMENT, with_predictions=_is_crossed(cells[i]))
    ]
    for i in set(range(len(cells))) - set(todo):
        advance(len(cells[i].members))
    if todo:
        try:
            measured = measure_group([cells[i] for i in todo], [datas[i] for i in todo], pool, advance, kernels)
        except ValueError as error:
            if kernels is None:
                raise
            raise UserError(str(error)) from error  # a store that cannot be written
        for i, found in zip(todo, measured, strict=True):
            if _is_crossed(cells[i]):
                predictions = {name: torch.stack([getattr(m, name) for m in found]) for name in ("network", "kernel")}
                write_tensors(paths[i].with_suffix(".safetensors"), predictions)
            frame = pd.DataFrame([m.row for m in found])
            frame = frame.reindex(columns=[*frame, *(name for name in COLUMNS if name not in frame)])
            _write(paths[i], frame, version=MEASUREMENT)
    return [pd.read_parquet(path) for path in paths]


def _write(path: Path, frame: pd.DataFrame, version: int) -> None:
    frame.attrs = {"measurement": version}
    write_atomically(path, lambda temporary: frame.to_parquet(temporary))


def _is_current(path: Path, *, version: int, with_predictions: bool = False) -> bool:
    if not path.is_file() or (with_predictions and not path.with_suffix(".safetensors").is_file()):
        return False
    try:
        return pd.read_parquet(path).attrs.get("measurement") == version
    except (OSError, ValueError):  # damaged: measure again
        return False


def _with_theory_at_width(networks: pd.DataFrame, architectures: _Architectures) -> pd.DataFrame:
    """Theory at the effective width of a cell: the mean of 1/N_eff over its seeds and draws, at one ridge."""
    added: dict[Any, Row] = {}
    for (run, ridge), rows in networks.groupby(["run", "ridge"]):
        pool, inverse = architectures.of(str(run)), rows["inverse_width"].mean()
        if pool is not None and inverse == inverse:
            values = theory_at_width(pool.estimator, int(rows["P"].iloc[0]), float(ridge), float(inverse))  # type: ignore[arg-type]
            added |= dict.fromkeys(rows.index, values)
    columns = pd.DataFrame.from_dict(added, orient="index", columns=["theory_width_test", "theory_width_kappa1"])
    columns = columns.astype("float64")  # also where no cell has a theory
    return networks.join(columns)


def _with_block_law(
    experiment: Path, cells: list[Cell], networks: pd.DataFrame, architectures: _Architectures
) -> pd.DataFrame:
    """The finite-width law of every cell, narrow ones first: neighbours in width start from one another."""
    laws: dict[str, BlockLaws] = defaultdict(BlockLaws)
    frames = []
    with progress("finite-width law", len(cells)) as steps:
        for cell in sorted(cells, key=lambda cell: (cell.train_size, int(cell.config["model"].get("width", 0)))):
            path = experiment / "laws" / f"{cell.name}.parquet"
            if not _is_current(path, version=LAWS):
                pool = architectures.of(cell.name)
                family = laws[architectures.of_run[cell.name]]
                frame = family.of_cell(cell, cell.data(), None if pool is None else pool.estimator)
                _write(path, frame, version=LAWS)
            frames.append(pd.read_parquet(path))
            steps.advance()
    return networks.merge(pd.concat(frames, ignore_index=True), on=["run", "ridge", "draw"], how="left")


def _spectrum(name: Row, pool: PoolKernels) -> pd.DataFrame:
    values = pool.estimator.eigenvalues
    return pd.DataFrame(
        {
            **name,
            "kernel": "ntk",
            "index": torch.arange(1, len(values) + 1).numpy(),
            "eigenvalue": values.numpy(),
            "target_power": pool.estimator.target_power.numpy(),
        }
    )


def _key(cell: Cell, *, without_size: bool = False, without_width: bool = False) -> str:
    """Cells with equal keys share data (up to training size) and architecture (up to width)."""
    config = json.loads(json.dumps(cell.config))
    drop = [key for key in ("output", "name", "logging", "memory", "accelerator") if key in config]
    if without_size:
        config["data"].pop("train_size")
    if without_width:
        # the standard parameterisation's limit keeps the ratio of fan-ins and so depends on the width
        if config["model"].get("parameterisation") != "standard":
            config["model"].pop("width", None)
        # how the networks were trained does not change the kernel of infinitely wide ones
        drop += ["optimiser", "alpha", "ridges", "num_seeds", "num_draws", "design", "seed"]
        drop += ["batch_size", "max_steps", "tolerance", "dtype", "stop", "linearised", "online"]
        drop += ["measure_per_decade", "measure_kernels", "precision", "compile", "devices", "checkpoint_every"]
    for key in drop:
        config.pop(key, None)
    return json.dumps(config, sort_keys=True)
