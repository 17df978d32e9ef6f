"""Early stopping: gradient flow against a network's risk at every measured time, and the ridge each time acts like.

One row per network and measured time (``who`` = network), and per draw of the infinite-width kernel (infinite):

    network_test, network_train    of the trajectory
    flow_test, flow_train          gradient flow with the network's own full kernel at initialisation
    acting_ridge                   the ridge whose regression with that kernel has the network's training risk
    ridge_test                     the test risk of that regression: what a ridge makes of the same fit
    flow_ridge, flow_misfit        the ridge whose filter is nearest to the flow's; what it misses of the labels' power
    best_ridge_test                the lowest test risk of any ridge with that kernel (chosen on the test points)
    infinite_flow_test             flow with the infinite-width kernel, on all points it was not trained on
    theory_flow_test, _train       the deterministic equivalent, from the pool

Only gradient descent on the whole training set, without a ridge, makes the flow of the theory: other members have no
rows. Letters: P samples, C outputs, K/P has eigenvalues s, lam ridge, t time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from ridgescope.analysis.infinite import PoolKernels
from ridgescope.analysis.regression import squared_error
from ridgescope.analysis.rows import Row, identity
from ridgescope.analysis.runs import Cell
from ridgescope.models import KernelStore, empirical_ntk, linearised_predict
from ridgescope.theory import PoolEstimator, acting_ridge, kernel_flow, pool_estimator, pool_flow_risks
from ridgescope.train.data import PreparedData

STOPPING = 2  # version of a file of this table; another one is measured again
POINTS = 700  # of the pool, for the equivalent: it costs their number squared at each of hundreds of nodes
RIDGES = 40  # grid on which the best ridge is looked for


def has_flow(cell: Cell) -> bool:
    """Whether the cell's trajectory is one of gradient flow without a ridge."""
    path = cell.folder / "trajectory.parquet"
    if not path.is_file() or cell.config["batch_size"] is not None or 0.0 not in map(float, cell.config["ridges"]):
        return False
    return bool(pd.read_parquet(path, columns=["time"])["time"].notna().any())


def stopping_rows(cell: Cell, data: PreparedData, store: KernelStore | None = None) -> pd.DataFrame:
    """The rows of a cell's networks. Cost: for each seed and draw an eigendecomposition of P C rows, and a derivative
    along the network on the test points for each time and ridge."""
    trajectory = pd.read_parquet(cell.folder / "trajectory.parquet")
    trajectory = trajectory[(trajectory["ridge"] == 0) & trajectory["time"].notna()]
    network = cell.network(data)
    frames = []
    for _, rows in trajectory.groupby(["seed", "draw"], sort=True):
        seed, draw = int(rows["seed"].iloc[0]), int(rows["draw"].iloc[0])
        kernel = _StartKernel(network, cell.initial_of(seed), data, draw, store)
        found = [kernel.at(time, train) for time, train in zip(rows["time"], rows["train_risk"], strict=True)]
        measured = rows[["seed", "draw", "step", "time"]].reset_index(drop=True)
        measured["network_test"] = rows["test_risk"].to_numpy()
        measured["network_train"] = rows["train_risk"].to_numpy()
        frames.append(measured.join(pd.DataFrame(found)).assign(best_ridge_test=kernel.best_ridge_test()))
    table = pd.concat(frames, ignore_index=True)
    named = table.assign(**identity(cell), ridge=0.0, who="network")
    return named.assign(converged=np.isfinite(named["network_test"]))


class _StartKernel:
    """A network's full kernel at initialisation on one training set, decomposed."""

    def __init__(
        self,
        network: nn.Module,
        parameters: dict[str, Tensor],
        data: PreparedData,
        draw: int,
        store: KernelStore | None,
    ) -> None:
        index = data.splits.train[draw]
        self.network, self.parameters = network, parameters
        self.inputs, targets = data.pool_inputs[index], data.pool_targets[index]
        self.test = data.test_inputs, data.test_targets
        self.samples, self.outputs = targets.shape
        self.scale = float(getattr(network, "kernel_scale", 1.0))
        gram = empirical_ntk(network, parameters, self.inputs, path=store) / (self.scale * self.samples)
        values, self.vectors = torch.linalg.eigh(gram)
        self.eigenvalues = values.clamp_min(0)
        self.labels = self.vectors.T @ targets.T.reshape(-1)
        self.power = self.labels.square()

    def at(self, time: float, train: float) -> Row:
        """What flow until ``time`` and the ridge of the same training risk ``train`` give."""
        s = self.eigenvalues
        learned = -torch.expm1(-time * s)
        row = {
            "flow_test": self._test(torch.where(s > 0, learned / s.clamp_min(1e-300), time)),
            "flow_train": float((self.power * (1 - learned).square()).sum()) / self.samples,
            "acting_ridge": self._ridge_of(train),
        }
        row["ridge_test"] = self._ridge_test(row["acting_ridge"])
        if time > 0:
            labels = self.labels[:, None]
            filters = acting_ridge(s, labels, learned[:, None] * labels, ridge=1 / time, num_samples=self.samples)
            row |= {"flow_ridge": filters.ridge, "flow_misfit": filters.ridge_misfit}
        return row

    def best_ridge_test(self) -> float:
        top = float(self.eigenvalues[-1])
        ridges = np.geomspace(1e-6 * top, 10 * top, RIDGES)
        return min(self._ridge_test(float(ridge)) for ridge in ridges)

    def _train(self, ridge: float) -> float:
        missed = ridge / (self.eigenvalues + ridge)
        return float((self.power * missed.square()).sum()) / self.samples

    def _ridge_of(self, train: float) -> float:
        """NaN where no ridge has this training risk: before the first step, or once nothing is left."""
        top = float(self.eigenvalues[-1])
        low, high = math.log(1e-10 * top), math.log(1e6 * top)
        if not self._train(math.exp(low)) < train < self._train(math.exp(high)):
            return math.nan
        return math.exp(brentq(lambda log: self._train(math.exp(log)) - train, low, high, xtol=1e-6))

    def _ridge_test(self, ridge: float) -> float:
        return math.nan if math.isnan(ridge) else self._test(1 / (self.eigenvalues + ridge))

    def _test(self, weights: Tensor) -> float:
        """Test risk of the predictor with the filter ``weights``/(s + lam) or g(s)."""
        dual = self.vectors @ (weights * self.labels) / (self.samples * self.scale)
        inputs, targets = self.test
        return squared_error(linearised_predict(self.network, self.parameters, self.inputs, dual, inputs), targets)


@dataclass
class FlowTheory:
    """The deterministic equivalent for one architecture's pool; times and sizes that cells share are computed once."""

    kernels: PoolKernels
    found: dict[tuple[int, float], tuple[float, float]] = field(default_factory=dict)
    estimators: dict[int, PoolEstimator] = field(default_factory=dict)

    def at(self, data: PreparedData, size: int, time: float) -> tuple[float, float]:
        """Test and train risk, NaN where the pool cannot say."""
        if (size, time) not in self.found:
            points = min(max(POINTS, 2 * size), len(data.pool_targets))
            if points not in self.estimators:
                part = self.kernels.ntk[:points, :points], data.pool_targets[:points]
                self.estimators[points] = pool_estimator(*part)
            try:
                self.found[size, time] = pool_flow_risks(self.estimators[points], num_samples=size, time=time)
            except (ValueError, RuntimeError):
                self.found[size, time] = math.nan, math.nan
        return self.found[size, time]


def infinite_flow_rows(cell: Cell, data: PreparedData, theory: FlowTheory, times: pd.DataFrame) -> pd.DataFrame:
    """Flow with the infinite-width kernel on every draw of ``data`` at the ``times`` (step, time); its equivalent."""
    kernels = theory.kernels
    everything = torch.cat([kernels.ntk, kernels.ntk_test])
    targets = torch.cat([data.pool_targets, data.test_targets])
    rows = []
    for draw, index in enumerate(data.splits.train):
        flow = kernel_flow(kernels.ntk[index][:, index], data.pool_targets[index])
        unseen = torch.ones(len(everything), dtype=torch.bool)
        unseen[index] = False
        cross, rest = everything[unseen][:, index], targets[unseen]
        for step, time in times.itertuples(index=False):
            test, train = theory.at(data, len(index), float(time))
            rows.append(
                {
                    "seed": 0,
                    "draw": draw,
                    "step": step,
                    "time": time,
                    "infinite_flow_test": squared_error(cross @ flow.dual(time), rest),
                    "infinite_flow_train": flow.train(time),
                    "theory_flow_test": test,
                    "theory_flow_train": train,
                }
            )
    return pd.DataFrame(rows).assign(**identity(cell), ridge=0.0, who="infinite", converged=True)


def measured_times(table: pd.DataFrame) -> pd.DataFrame:
    """The distinct (step, time) of a cell's rows after the start."""
    return table.loc[table["time"] > 0, ["step", "time"]].drop_duplicates("step").reset_index(drop=True)


def best_stops(table: pd.DataFrame, keys: Sequence[str] = ("width", "P")) -> pd.DataFrame:
    """Per cell: when the mean test risk over its networks was lowest, and how it compares with the best ridge.

    ``stop_over_ridge``: mean and standard error (over networks) of best-stop risk over best-ridge risk, minus one, both
    chosen on the test points; ``acting_ridge`` and ``time`` at that stop (geometric means).
    """
    rows = []
    for place, cell in table[table["who"] == "network"].groupby(list(keys), sort=True):
        risks = cell.groupby("step")["network_test"].mean()
        if risks.isna().all():
            continue
        best = cell[cell["step"] == risks.idxmin()]
        ratio = (best["network_test"] / best["best_ridge_test"]).map(math.log)
        rows.append(
            {
                **dict(zip(keys, place, strict=True)),
                "step": int(best["step"].iloc[0]),
                "interior": bool(best["step"].iloc[0] < cell["step"].max()),
                "time": best["time"].iloc[0],
                "network_test": best["network_test"].mean(),
                "flow_test": best["flow_test"].mean(),
                "best_ridge_test": best["best_ridge_test"].mean(),
                "stop_over_ridge": math.expm1(ratio.mean()),
                "stop_over_ridge_se": ratio.sem(),
                "acting_ridge": math.exp(np.log(best["acting_ridge"]).mean()),
                "networks": len(best),
            }
        )
    return pd.DataFrame(rows)
