"""The three ways to the optimum: preconditioned L-BFGS, SGD with momentum, Adam.

Each is a small dataclass that Hydra fills and ``build`` turns into a ``torch.optim.Optimizer`` over the parameter
matrix of an :class:`~ridgescope.train.training.EnsembleTraining`.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ridgescope.models import empirical_ntk
from ridgescope.train.errors import UserError
from ridgescope.train.lbfgs import EnsembleLBFGS, Linear, kernel_preconditioner

if TYPE_CHECKING:
    from ridgescope.train.training import EnsembleTraining


class OptimiserFactory(Protocol):
    """``bytes_per_member`` tells the memory budget what one more member costs."""

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer: ...

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int: ...


@dataclass(frozen=True)
class KernelLBFGS:
    """Full batch, few steps: L-BFGS preconditioned by the tangent kernel, taken afresh every ``refresh`` evaluations.

    Needs the (P C) x (P C) kernel and one Cholesky factor per member.
    """

    history: int = 6
    refresh: int = 10

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer:
        if training.batch_size is not None:
            raise UserError(
                f"optimiser=kernel_lbfgs is full batch but batch_size={training.batch_size}; "
                f"leave batch_size out, or choose optimiser=sgd"
            )
        if self.history < 1 or self.refresh < 1:
            raise UserError(f"optimiser.history={self.history} and optimiser.refresh={self.refresh} must be at least 1")
        return EnsembleLBFGS(training.theta, partial(_linearise, training), history=self.history, refresh=self.refresh)

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int:
        return itemsize * ((2 * self.history + 11) * num_parameters + 2 * num_residuals**2)


@dataclass(frozen=True)
class SGD:
    """Gradient descent with heavy-ball momentum, full batch or minibatch.

    ``learning_rate`` None takes 1/L, with L the top eigenvalue of the Gauss-Newton Hessian at initialisation
    (power iteration): stable for every momentum below 1.
    """

    learning_rate: float | None = None
    momentum: float = 0.95

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer:
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimiser.momentum={self.momentum} must lie in [0, 1)")
        rate = self.learning_rate if self.learning_rate is not None else 1 / training.top_curvature()
        return torch.optim.SGD([training.theta], lr=_positive(rate), momentum=self.momentum)

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int:
        return itemsize * 6 * num_parameters


@dataclass(frozen=True)
class Adam:
    """Adam; its step is ``learning_rate / alpha``, because a lazy network's parameters move by O(1/alpha)."""

    learning_rate: float = 1e-2

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer:
        return torch.optim.Adam([training.theta], lr=_positive(self.learning_rate) / training.alpha)

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int:
        return itemsize * 7 * num_parameters


def _positive(rate: float) -> float:
    if not 0 < rate < float("inf"):
        raise UserError(f"optimiser.learning_rate={rate} must be positive and finite")
    return rate


def _linearise(training: "EnsembleTraining", points: Tensor, index: Tensor) -> Linear:
    """The preconditioner at ``points`` (k, p) of the members ``index`` (k,). Members with one seed and draw share their
    kernel at the start."""
    penalty = training.penalty[index]
    grams: dict[bytes, Tensor] = {}
    factors, floors = [], []
    for row, e, c in zip(points, index.tolist(), penalty, strict=True):
        key = row.cpu().numpy().tobytes() + str(training.members[e].draw).encode()
        if key not in grams:
            grams.clear()  # neighbours share; one kernel at a time in memory
            parameters = {n: v[0] for n, v in training.network.unflatten(row[None]).items()}
            inputs = training.inputs[training.members[e].draw]
            grams[key] = training.alpha**2 * empirical_ntk(training.network.skeleton, parameters, inputs)
        gram = grams[key]
        # Without a ridge the Hessian is singular; a floor far below any kept kernel eigenvalue makes H0 finite.
        floor = torch.maximum(c, 1e-10 * gram.diagonal().mean() / training.num_samples)
        shifted = gram.clone()
        shifted.diagonal().add_(training.num_samples * floor)
        factors.append(torch.linalg.cholesky(shifted))
        floors.append(floor)
    return kernel_preconditioner(*training.tangent_products(points, index), factors, torch.stack(floors))
