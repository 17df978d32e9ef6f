"""Settings of ``ridgescope submit`` and ``status``; the kinds of job are in ``conf/cluster/*.yaml``."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ridgescope.analysis.config import ValidateConfig


@dataclass
class ClusterConfig:
    """One kind of job. What is null is left to the site's defaults."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = 0
    gres: str | None = None  # instead of gpus, for what your site calls a share of one: shard:1
    cpus: int = 2
    mem: str | None = "8G"
    time: int = 240  # minutes; a cell that needs longer is checkpointed and goes on in a requeued job
    cells_per_job: int = 1  # one after the other, in one process: spares small cells the imports
    at_once: int = 1  # processes of a job that share its cells, CPUs and GPU
    max_running: int | None = None  # array tasks at a time
    signal_seconds: int = 120  # before the time limit: time to finish a step and write a checkpoint
    max_requeues: int = 50
    setup: list[str] = field(default_factory=list)  # shell lines: module load ..., source .../activate
    extra: list[str] = field(default_factory=list)  # further options of sbatch: --mail-type=FAIL
    python: str | None = None  # the interpreter that submits, unless named
    analysis_time: int = 240  # minutes of the job that measures and reports after the cells
    analysis_mem: str | None = "16G"


@dataclass
class SubmitConfig(ValidateConfig):
    """The settings of ``ridgescope validate``, and where it runs."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass
class StatusConfig:
    folder: str = MISSING  # of an experiment, such as runs/validate_digits
    resubmit: bool = False  # submit what failed or is missing, with the settings of the last submission


@dataclass
class SyncConfig:
    folder: str = MISSING  # of an experiment, or of many, such as runs
    online: bool = False  # also runs that began online: those that lost their network half way
    dry_run: bool = False  # only name what would be uploaded


@dataclass
class DashboardConfig:
    folder: str = MISSING  # of an experiment: its name is the group whose runs are shown
    project: str = "ridgescope"
    entity: str | None = None  # null: your own
    out: str | None = None  # a file for the workspace as JSON, instead of saving it in wandb


def register() -> None:
    store = ConfigStore.instance()
    store.store("submit_schema", SubmitConfig)
    store.store("status_schema", StatusConfig)
    store.store("sync_schema", SyncConfig)
    store.store("dashboard_schema", DashboardConfig)
    store.store("cluster_schema", ClusterConfig, group="cluster")
