"""From one line of overrides to the cells it stands for: ``model.width=16,32`` is two."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from ridgescope.train.config import checked


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Hydra's own reading of a sweep, without running it."""
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), None)
    return [list(job) for batch in batches for job in batch]


def experiment_lines(
    sweeps: Sequence[str], *, common: str, overrides: str, name: str, output: str, logging: Mapping[str, Any]
) -> list[list[str]]:
    """The sweeps of an experiment, each as the overrides of one ``ridgescope train -m``."""
    place = [f"name={name}", f"output={output}"]
    place += [f"logging.{key}={json.dumps(value)}" for key, value in logging.items() if value]
    return [[*shlex.split(f"{common} {sweep} {overrides}"), *place] for sweep in sweeps]


def compose_cells(overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of all cells of a sweep, each checked, before any of them runs."""
    active = GlobalHydra.instance().is_initialized()
    cells = []
    if active:  # inside another Hydra application: borrow its place, then give it back
        held = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
    try:
        with initialize_config_module("ridgescope.conf", version_base="1.3"):
            for job in expand(overrides):
                config = compose("train", overrides=job)
                checked(config)
                cells.append(config)
    finally:
        if active:
            GlobalHydra.instance().initialize(held)  # type: ignore[arg-type]
    return cells
