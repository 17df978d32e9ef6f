"""``ridgescope forecast``: from a pilot to a page, a table and a recommendation."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ridgescope.analysis.forecast.config import register
from ridgescope.analysis.forecast.grid import Forecast, forecast
from ridgescope.analysis.forecast.pilot import require_disjoint
from ridgescope.analysis.forecast.spend import Cost, Machine, choices, measured_cost
from ridgescope.analysis.forecast.words import recommendation
from ridgescope.analysis.report.forecast import write_forecast
from ridgescope.models import empirical_ntk, infinite_ntk
from ridgescope.train.config import checked
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.entry import one_line_errors
from ridgescope.train.errors import UserError
from ridgescope.train.files import read_tensors
from ridgescope.train.main import quiet
from ridgescope.train.networks import network_factory
from ridgescope.train.progress import duration, say
from ridgescope.train.provenance import environment

Kernels = dict[float, list[Tensor]]


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="forecast")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet()
    plain = checked(config)
    started = time.monotonic()
    kernels, targets, cost = _from_file(plain) if plain["kernel"] else _from_data(plain)
    say(f"kernels of {len(targets)} pilot points: {duration(time.monotonic() - started)}")
    started = time.monotonic()
    size = len(targets)
    samples = plain["samples"] or [round(size * 2.0**i) for i in range(-1, 4)]
    try:
        result = forecast(kernels, targets, num_samples=samples, ridges=plain["ridges"])
    except UserError:
        raise
    except ValueError as error:  # a kernel that is none says so in one line
        raise UserError(str(error)) from error
    say(f"forecast: {duration(time.monotonic() - started)}")
    _finish(plain, result, cost)


def _finish(plain: dict[str, Any], result: Forecast, cost: Cost | None) -> None:
    table = choices(result.optimal, cost, Machine(**plain["gpu"])) if cost else pd.DataFrame()
    text = recommendation(result, table, target_risk=plain["target_risk"], budget=plain["budget"])
    facts, gpu = environment(), plain["gpu"]
    page = write_forecast(
        result,
        text,
        Path(plain["output"]) / plain["name"],
        runs=_runs(plain["runs"]),
        spending=table,
        metadata={
            "title": f"Forecast: {plain['name']}",
            "created": facts["created"],
            "command": " ".join(["ridgescope forecast", *sys.argv[1:]]),
            "versions": {"ridgescope": facts["ridgescope"], "python": facts["python"], **facts["packages"]},
            "hardware": f"{facts['processor']}, {facts['cores']} cores",
            "GPU model": f"{gpu['peak']:.3g} FLOP/s at {gpu['utilisation']:g}, {gpu['watts']:g} W",
        },
    )
    print(text)
    print(f"\nreport: {page}")


def _from_file(plain: dict[str, Any]) -> tuple[Kernels, Tensor, None]:
    """A kernel of the user's: of any module, or after training."""
    held = read_tensors(Path(plain["kernel"]))
    if not {"kernel", "targets"} <= held.keys():
        raise UserError(f"{plain['kernel']} holds {', '.join(sorted(held))}; it must hold 'kernel' and 'targets'")
    gram, targets = held["kernel"].double(), held["targets"].double()
    return {math.inf: [gram]}, targets if targets.ndim == 2 else targets[:, None], None


def _from_data(plain: dict[str, Any]) -> tuple[Kernels, Tensor, Cost]:
    data = prepare_data(**plain["data"], num_draws=1)
    require_disjoint(data.pool_inputs, data.test_inputs)
    build = _builder(plain["model"], data)
    kernels: Kernels = {}
    widths = plain["widths"]
    if widths and plain["num_draws"] < 2:
        raise UserError(
            f"num_draws={plain['num_draws']} cannot say how much networks of one width differ; use 2 or more"
        )
    try:
        for width in widths:
            if width < 1:
                raise UserError(f"widths holds {width}; widths are at least 1")
            kernels[float(width)] = [_drawn_kernel(build(width, i), data) for i in range(plain["num_draws"])]
        if plain["infinite"] or not widths:
            kernels[math.inf] = [_infinite_kernel(build, data, required=not widths)]
    except _NoLimit as error:
        say(f"no infinite-width kernel: {error}")
    return (
        kernels,
        data.pool_targets,
        measured_cost(lambda n: build(n, 0), widths, data.pool_inputs[:8], plain["passes"]),
    )


class _NoLimit(Exception):
    pass


def _infinite_kernel(build: Callable[[int | None, int], nn.Module], data: PreparedData, *, required: bool) -> Tensor:
    try:
        return infinite_ntk(build(None, 0), data.pool_inputs).ntk
    except ValueError as error:
        if required:
            raise UserError(f"{error}; or set widths=[...] to measure its tangent kernel") from error
        raise _NoLimit(str(error)) from error


def _drawn_kernel(network: nn.Module, data: PreparedData) -> Tensor:
    """The trace form over outputs, in units in which widths compare."""
    kernel = empirical_ntk(network, None, data.pool_inputs, form="trace")
    return kernel / getattr(network, "kernel_scale", 1.0)


def _builder(model: dict[str, Any], data: PreparedData) -> Callable[[int | None, int], nn.Module]:
    """``build(width or None for the configured one, seed)``."""

    def build(width: int | None, seed: int) -> nn.Module:
        return network_factory(model if width is None else model | {"width": width})(
            in_shape=data.in_shape,
            num_outputs=data.num_outputs,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )

    return build


def _runs(path: str | None) -> pd.DataFrame | None:
    if path is None:
        return None
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"runs={path} cannot be read ({error}); pass a Parquet file") from error
    lacking = {"P", "ridge", "test"} - set(table.columns)
    if lacking:
        raise UserError(f"runs={path} lacks {', '.join(sorted(lacking))}; it must have P, ridge and test")
    return table if "width" in table else table.assign(width=math.inf)


register()
