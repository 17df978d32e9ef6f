"""Settings of the two analysis commands."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ridgescope.analysis.claims import Claim
from ridgescope.train.config import LoggingConfig


@dataclass
class AnalyseConfig:
    folder: str = MISSING  # of an experiment, such as runs/validate_digits
    infinite_draws: int = 32  # training sets over which infinite-width kernels are averaged
    claims: dict[str, Claim] = field(default_factory=dict)  # what is judged; see conf/claims
    level: float = 0.05  # chance that any verdict of a family is wrong
    kernels: str | None = None  # folder of a store: kernels computed once are read by later analyses
    kernels_limit: str = "20GB"  # of the store; the least recently used are removed
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass
class ValidateConfig:
    """``sweeps``: each entry is the command line of one Hydra sweep of ``ridgescope train``; ``common`` goes before
    each and ``overrides``, meant for the command line, after."""

    name: str = MISSING
    output: str = "runs"
    sweeps: list[str] = MISSING
    common: str = ""
    overrides: str = ""
    infinite_draws: int = 32  # training sets over which infinite-width kernels are averaged
    claims: dict[str, Claim] = field(default_factory=dict)  # what is judged; see conf/claims
    level: float = 0.05  # chance that any verdict of a family is wrong
    kernels: str | None = None  # folder of a store: kernels computed once are read by later analyses
    kernels_limit: str = "20GB"  # of the store; the least recently used are removed
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass
class KernelsConfig:
    folder: str = MISSING  # of a store of kernels
    check: bool = False  # read every kernel and compare its checksums
    remove: str | None = None  # a name or its beginning, all, unfinished, damaged


def register() -> None:
    store = ConfigStore.instance()
    store.store("kernels_schema", KernelsConfig)
    store.store("analyse_schema", AnalyseConfig)
    store.store("validate_schema", ValidateConfig)
