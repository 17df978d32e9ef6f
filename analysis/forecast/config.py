"""Settings of ``ridgescope forecast``."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ridgescope.train.config import DataConfig


@dataclass
class GPUConfig:
    """The model by which GPU seconds and energy are estimated; see `ridgescope.analysis.forecast.spend.Machine`."""

    peak: float = 4.95e14  # FLOP/s
    utilisation: float = 0.35
    watts: float = 700.0


@dataclass
class ForecastConfig:
    """``data`` (its ``pool_size`` is the pilot), ``model`` and ``widths``; or ``kernel``, a file."""

    name: str = "forecast"
    output: str = "runs"
    data: DataConfig = MISSING
    model: Any = MISSING
    kernel: str | None = None  # safetensors with kernel (M, M) and targets (M, C) instead of data and model
    widths: list[int] = field(default_factory=list)  # whose tangent kernels are measured on the pilot
    num_draws: int = 4  # networks drawn at each width, 2 or more: how much they differ joins the interval
    infinite: bool = True  # the infinite-width kernel too, where the model has one
    samples: list[int] = field(default_factory=list)  # P; by default M/2 to 8 M
    ridges: list[float] | None = None
    target_risk: float | None = None
    budget: float | None = None  # FLOPs
    passes: float = 100.0  # over the training set, of a training run
    runs: str | None = None  # Parquet with columns P, ridge, test (and width): larger runs, drawn beside the forecast
    gpu: GPUConfig = field(default_factory=GPUConfig)


def register() -> None:
    ConfigStore.instance().store("forecast_schema", ForecastConfig)
