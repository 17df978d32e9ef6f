"""The three ways to the optimum: preconditioned L-BFGS, SGD with momentum, Adam.

Each is a small dataclass that Hydra fills and ``build`` turns into a ``torch.optim.Optimizer`` over the parameter
matrix of an :class:`~ridgescope.train.training.EnsembleTraining`.

*Learning rates* are given in the units of the function, so that one value serves every width, laziness alpha and
parameterisation. Letters: N width, s kernel scale (1 in ntk, 1/N in mup, N in standard), L layers with weights,
gamma = 1 / (alpha sqrt(s N)) richness (N of ntk for standard): 1/alpha in mup, 1/(alpha sqrt N) in ntk.

    SGD    eta / (alpha^2 s) max(1, gamma)^(2/L - 2)
    Adam   eta / (alpha N sqrt s) max(1, gamma)^(1/L - 1)

A step of SGD then moves f by eta (K/s) times the residual, whatever alpha is. Where gamma > 1 the weights must grow
before f does, and the stable rate falls from gamma^2 to gamma^(2/L) (Atanasov, Meterez, Simon, Pehlevan 2024,
arXiv:2410.04642, for homogeneous networks). For Adam each weight moves by the rate itself, all N^2 of a hidden layer
in concert, hence N in place of a square root.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from ridgescope.models import empirical_ntk
from ridgescope.models.kernels.memory import WORKING
from ridgescope.train.errors import UserError
from ridgescope.train.lbfgs import EnsembleLBFGS, Linear, kernel_preconditioner
from ridgescope.train.progress import say

if TYPE_CHECKING:
    from ridgescope.train.training import EnsembleTraining


@runtime_checkable
class OptimiserFactory(Protocol):
    """``bytes_per_member`` tells the memory budget what one more member costs; ``decay`` in [0, 1] is the factor of
    the learning rate after a share of the steps."""

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer: ...

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int: ...

    def decay(self, share: float) -> float: ...


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
        return itemsize * ((2 * self.history + 13) * num_parameters + 2 * num_residuals**2)

    def decay(self, share: float) -> float:
        return 1.0


@dataclass(frozen=True)
class SGD:
    """Gradient descent with heavy-ball momentum, full batch or minibatch.

    ``learning_rate`` is eta of the module's equation; None takes the step 1/L, with L the top eigenvalue of the
    Gauss-Newton Hessian at initialisation (power iteration): stable for every momentum below 1. ``schedule`` is
    constant, linear or cosine; the last two fall to zero at ``max_steps``, as minibatch training needs to converge.
    """

    learning_rate: float | None = None
    momentum: float = 0.95
    schedule: str = "constant"

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer:
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimiser.momentum={self.momentum} must lie in [0, 1)")
        _check_schedule(self.schedule)
        if self.learning_rate is None:
            # power iteration approaches from below; the margin covers what is left
            rate = 1 / (1.1 * float(training.top_curvature().max()))
        else:
            _positive(self.learning_rate)
            rate = self.learning_rate * _function_rate(training, power=2)
            _name_unstable(self.learning_rate, rate, self.momentum, training)
        return torch.optim.SGD([training.theta], lr=rate, momentum=self.momentum, fused=True)

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int:
        return itemsize * 9 * num_parameters

    def decay(self, share: float) -> float:
        return _SCHEDULES[self.schedule](share)


@dataclass(frozen=True)
class Adam:
    """Adam; ``learning_rate`` is eta of the module's equation, ``schedule`` as for SGD."""

    learning_rate: float = 0.5
    schedule: str = "constant"

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer:
        _check_schedule(self.schedule)
        rate = _positive(self.learning_rate) * _function_rate(training, power=1)
        return torch.optim.Adam([training.theta], lr=rate, fused=True)

    def bytes_per_member(self, num_parameters: int, num_residuals: int, itemsize: int) -> int:
        return itemsize * 10 * num_parameters

    def decay(self, share: float) -> float:
        return _SCHEDULES[self.schedule](share)


_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}


def _check_schedule(schedule: str) -> None:
    if schedule not in _SCHEDULES:
        raise UserError(f"optimiser.schedule={schedule!r} is unknown; choose one of {', '.join(_SCHEDULES)}")


def _function_rate(training: "EnsembleTraining", power: int) -> float:
    """The factor of eta for SGD (power 2) and Adam (power 1); see the module."""
    network, alpha = training.network, training.alpha
    rate = (alpha * network.kernel_scale**0.5) ** -power
    if power == 1:
        rate /= network.width
    return rate * max(1.0, network.richness / alpha) ** (power / network.num_layers - power)


def _name_unstable(eta: float, rate: float, momentum: float, training: "EnsembleTraining") -> None:
    """Heavy ball on a quadratic of curvature L is stable up to 2 (1 + momentum) / L. A network may survive that at
    first (its curvature can fall: the catapult), so this is said, not refused."""
    edges = 2 * (1 + momentum) / training.top_curvature()
    beyond = int((rate > edges).sum())
    if beyond:
        edge = eta * float(edges.min()) / rate
        say(
            f"optimiser.learning_rate={eta:g} is above the stability edge {edge:.3g} for {beyond} of {len(edges)} "
            f"networks (2 (1 + momentum) / L, L from the kernel's top eigenvalue): they will jump or diverge; lower it"
        )


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
    if training.linearised:  # its tangent is the same everywhere
        points = training.initial[index]
    for row, e, c in zip(points, index.tolist(), penalty, strict=True):
        key = row.cpu().numpy().tobytes() + str(training.members[e].draw).encode()
        if key not in grams:
            grams.clear()  # neighbours share; one kernel at a time in memory
            parameters = {n: v[0] for n, v in training.network.unflatten(row[None]).items()}
            inputs = training.inputs[training.members[e].draw]
            # a stated budget: with what happens to be free the tiles would change, and with them the last bits
            memory = row.element_size() * (training.num_samples * training.targets.shape[-1]) ** 2 + WORKING
            grams[key] = training.alpha**2 * empirical_ntk(training.network.skeleton, parameters, inputs, memory=memory)
        gram = grams[key]
        # Without a ridge the Hessian is singular; a floor far below any kept kernel eigenvalue makes H0 finite.
        floor = torch.maximum(c, 1e-10 * gram.diagonal().mean() / training.num_samples)
        shifted = gram.clone()
        shifted.diagonal().add_(training.num_samples * floor)
        factors.append(torch.linalg.cholesky(shifted))
        floors.append(floor)
    return kernel_preconditioner(*training.tangent_products(points, index), factors, torch.stack(floors))
