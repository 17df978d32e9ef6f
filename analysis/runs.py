"""Finished cells, read back: config, members, weights and the data they were trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ridgescope.train.cell import FORMAT, is_done
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.errors import UserError
from ridgescope.train.files import read_json, read_tensors
from ridgescope.train.networks import network_factory


@dataclass(frozen=True)
class Cell:
    """``members`` has a dict per network (seed, draw, ridge, status, ...) and ``final`` its weights, row by row;
    ``initial`` has one row per seed, in the order of ``seeds``."""

    folder: Path
    config: dict[str, Any]
    members: list[dict[str, Any]]
    initial: dict[str, Tensor]
    final: dict[str, Tensor]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def train_size(self) -> int:
        return int(self.config["data"]["train_size"])

    @property
    def seeds(self) -> list[int]:
        return [self.config["seed"] + i for i in range(self.config["num_seeds"])]

    def initial_of(self, seed: int) -> dict[str, Tensor]:
        return {name: value[self.seeds.index(seed)] for name, value in self.initial.items()}

    def final_of(self, member: int) -> dict[str, Tensor]:
        return {name: value[member] for name, value in self.final.items()}

    def network(self, data: PreparedData) -> nn.Module:
        """The architecture with arbitrary weights: kernels and predictions get theirs from the files."""
        return network_factory(self.config["model"])(
            in_shape=data.in_shape,
            num_outputs=data.num_outputs,
            generator=torch.Generator().manual_seed(0),
            dtype=torch.float64,
        )

    def data(self, num_draws: int | None = None) -> PreparedData:
        """The very same data, with more draws if wanted: its hashes must be the recorded ones."""
        draws = max(num_draws or 0, self.config["num_draws"])
        data = prepare_data(**self.config["data"], num_draws=draws, dtype=torch.float64)
        recorded = read_json(self.folder / "splits.json")["hashes"]
        if not recorded.items() <= data.hashes().items():
            raise UserError(
                f"{self.name} was trained on other points than {self.config['data']['name']} gives now; put the data "
                f"back as it was, or train again under another name"
            )
        return data


def finished_cells(experiment: Path) -> tuple[list[Path], list[Path]]:
    """Folders of the finished and of the unfinished cells of an experiment, by name."""
    folder = experiment / "cells"
    if not folder.is_dir():
        raise UserError(f"{experiment} holds no cells; train some first: ridgescope train name={experiment.name}")
    cells = sorted(path for path in folder.iterdir() if path.is_dir())
    done = [path for path in cells if is_done(path)]
    return done, [path for path in cells if path not in done]


def load_cell(folder: Path) -> Cell:
    """Raises ``UserError`` for a folder of another format version or with damaged files."""
    done = read_json(folder / "done.json")
    if done.get("format") != FORMAT:
        raise UserError(
            f"{folder.name} has run format {done.get('format')!r} but this version reads {FORMAT}; analyse it with "
            f"the version in its environment.json, or train it again"
        )
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    programs = range(done["programs"])
    members = [m for i in programs for m in read_json(folder / f"program-{i:03d}.json")]
    parts = [read_tensors(folder / f"program-{i:03d}.safetensors") for i in programs]
    final = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    initial = {name: value.double() for name, value in read_tensors(folder / "initial.safetensors").items()}
    return Cell(folder, {str(k): v for k, v in config.items()}, members, initial, final)
