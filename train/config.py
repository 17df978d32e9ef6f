"""Names, types and defaults of everything that can be configured; values and composition live in ``conf/``."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from ridgescope.sizes import parse_size
from ridgescope.train.errors import UserError


@dataclass
class DataConfig:
    """See :func:`ridgescope.train.data.prepare_data`."""

    name: str = MISSING
    root: str | None = None
    download: bool = True
    train_size: int = MISSING  # P
    pool_size: int = MISSING  # M
    test_size: int = MISSING  # T
    centre: bool = True
    unit_norm: bool = True
    target: str = "one_hot"
    label_noise: float = 0.0
    label_flip: float = 0.0
    seed: int = 0


@dataclass
class MLPConfig:
    _target_: str = "ridgescope.models.MLP"
    width: int = 128
    depth: int = 2
    activation: str = "gelu"
    parameterisation: str = "ntk"
    weight_std: float | None = None
    bias_std: float = 0.0


@dataclass
class CNNConfig:
    _target_: str = "ridgescope.models.CNN"
    width: int = 16
    depth: int = 2
    activation: str = "gelu"
    parameterisation: str = "ntk"
    readout: str = "flatten"
    strides: list[int] = field(default_factory=lambda: [2, 2])  # one entry per convolution
    weight_std: float | None = None
    bias_std: float = 0.0


@dataclass
class KernelLBFGSConfig:
    _target_: str = "ridgescope.train.optimisers.KernelLBFGS"
    history: int = 6
    refresh: int = 10


@dataclass
class SGDConfig:
    _target_: str = "ridgescope.train.optimisers.SGD"
    learning_rate: float | None = None
    momentum: float = 0.95
    schedule: str = "constant"


@dataclass
class AdamConfig:
    _target_: str = "ridgescope.train.optimisers.Adam"
    learning_rate: float = 0.5
    schedule: str = "constant"


@dataclass
class LoggingConfig:
    """wandb: ``auto`` is online where a key and a network exist, else offline; or online, offline, disabled.

    metrics.csv is written always; ``tensorboard`` adds event files for ``tensorboard --logdir runs``."""

    wandb: str = "auto"
    tensorboard: bool = False
    project: str = "ridgescope"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    name: str = "runs"  # groups cells: a folder under ``output`` and the wandb group
    output: str = "runs"
    data: DataConfig = MISSING
    model: Any = MISSING
    optimiser: Any = MISSING
    alpha: float = 10.0  # laziness; 1/alpha is the richness
    ridges: list[float] = field(default_factory=lambda: [1e-2, 1e-4])
    num_seeds: int = 4
    num_draws: int = 4
    design: str = "paired"  # seed i with draw i, all independent; or crossed: every seed with every draw
    seed: int = 0
    batch_size: int | None = None
    max_steps: int = 2000
    tolerance: float = 1e-6
    stop: str = "optimum"  # or "steps": train to max_steps whatever the loss
    online: bool = False  # each training point once: P / batch_size steps
    linearised: bool = False
    measure_per_decade: int = 0  # log-spaced measurements of the risks; 0 takes none
    measure_kernels: bool = False
    dtype: str = "float64"
    precision: str = "highest"
    compile: bool = False
    accelerator: str = "auto"
    devices: int = 1
    memory: str = "3GB"
    checkpoint_every: float = 60.0  # seconds
    logging: LoggingConfig = field(default_factory=LoggingConfig)


# Where a cell is written and how it is watched changes nothing in it.
_NOT_PART_OF_A_CELL = ("output", "name", "logging", "memory", "accelerator", "devices", "checkpoint_every")


def register() -> None:
    """Put the schemas where the YAML files' defaults lists find them."""
    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.store("data_schema", DataConfig, group="data")
    store.store("mlp_schema", MLPConfig, group="model")
    store.store("cnn_schema", CNNConfig, group="model")
    store.store("kernel_lbfgs_schema", KernelLBFGSConfig, group="optimiser")
    store.store("sgd_schema", SGDConfig, group="optimiser")
    store.store("adam_schema", AdamConfig, group="optimiser")


def checked(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers.

    Raises ``UserError`` for keys that no schema knows (Hydra lets ``+model.widht=8`` pass) and missing values.
    """
    _reject_unknown(config, "")
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"no value for {', '.join(sorted(missing))}; set it on the command line")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _reject_unknown(node: DictConfig, path: str) -> None:
    kind = OmegaConf.get_type(node)
    if dataclasses.is_dataclass(kind):
        known = {f.name for f in dataclasses.fields(kind)}
        for key in map(str, node):
            if key not in known:
                raise UserError(f"unknown key {path}{key}; known here: {', '.join(sorted(known))}")
    for key in map(str, node):
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _reject_unknown(node[key], f"{path}{key}.")


def cell_identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what a cell contains."""
    identity = {key: value for key, value in config.items() if key not in _NOT_PART_OF_A_CELL}
    # where the same bytes come from does not matter either; their index hashes and sums are recorded
    identity["data"] = {k: v for k, v in config["data"].items() if k not in ("root", "download")}
    return identity


def cell_hash(config: dict[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of the cell's identity."""
    text = json.dumps(cell_identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def model_name(config: dict[str, Any]) -> str:
    """The last part of the model's path: 'mlp'."""
    return str(config["model"]["_target_"]).rsplit(".", 1)[-1].lower()


def cell_name(config: dict[str, Any]) -> str:
    """A readable folder name that changes with anything that changes the cell."""
    width = f"-w{config['model']['width']}" if "width" in config["model"] else ""
    data = config["data"]["name"].rpartition(":")[2]
    return f"{data}-{model_name(config)}{width}-P{config['data']['train_size']}-{cell_hash(config)}"


def parse_memory(text: str) -> int:
    """``"3GB"`` -> 3_000_000_000."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UserError(str(error)) from None
