"""``ridgescope coordinates``: the coordinate check as a command, with its table and its plot."""

import time
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig

from ridgescope.analysis.config import register
from ridgescope.analysis.coordinates import Setting, coordinate_figure, coordinates, slopes
from ridgescope.analysis.drawing import figure_bytes
from ridgescope.train.config import cell_hash, checked
from ridgescope.train.config import register as register_training
from ridgescope.train.data import prepare_data
from ridgescope.train.entry import one_line_errors
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_atomically
from ridgescope.train.networks import network_factory
from ridgescope.train.progress import duration, quiet, say


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="coordinates")
@one_line_errors
def coordinate_check(config: DictConfig) -> None:
    quiet()
    plain = checked(config)
    path = Path(plain["output"]) / plain["name"] / f"coordinates-{cell_hash(plain)}.parquet"
    if not path.exists():
        started = time.monotonic()
        table = _measure(plain)
        write_atomically(path, lambda temporary: table.to_parquet(temporary))
        say(f"{len(table)} networks took {duration(time.monotonic() - started)}")
    table = pd.read_parquet(path)
    plot = path.with_suffix(".svg")
    write_atomically(plot, lambda temporary: temporary.write_bytes(figure_bytes(coordinate_figure(table), "svg")))
    found = slopes(table)
    print(found.to_string(index=False, float_format="{:.2f}".format))
    rate, fell = plain["optimiser"]["learning_rate"], int((table["loss"] < 1).sum())
    print(f"\nlearning rate {rate:g}: the loss of {fell} of {len(table)} networks fell\nplot: {plot}")


def _measure(plain: dict[str, Any]) -> pd.DataFrame:
    if plain["optimiser"].get("learning_rate") is None:
        raise UserError(
            "the coordinate check needs one learning rate for all networks; give optimiser.learning_rate, e.g. "
            "optimiser=sgd optimiser.learning_rate=0.1"
        )
    data = prepare_data(**plain["data"], num_draws=1)
    setting = Setting(instantiate(plain["optimiser"]), plain["steps"], plain["num_seeds"])
    ladder = {key: plain[key] for key in ("parameterisations", "alphas", "widths")}
    try:
        return coordinates(network_factory(plain["model"]), data, setting, **ladder)
    except ValueError as error:  # such as a network that has no tangent kernel, in one line
        raise UserError(str(error)) from error


register()
register_training()
