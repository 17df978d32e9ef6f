"""Training of one program, an ensemble of members, to the optimum of the theory's own loss.

    loss_e = (1/P) sum_mu |f_e(x_mu) - y_mu|^2 + c_e |theta_e - theta_e0|^2,    c_e = lam_e s alpha^2

with ``f = alpha (h(theta) - h(theta_0))`` and s the network's kernel scale (1 in NTK parameterisation). At large
alpha its minimiser is kernel ridge regression with the kernel K/s at initialisation and ridge lam.

*Optimality gap.* Near-quadratic losses with strong convexity 2 c obey ``loss - min <= |grad|^2 / (4 c)``. A member
has converged when that bound is below ``tolerance`` times its loss (without a ridge: when the gradient has shrunk
by ``tolerance``). The bound is exact in the lazy limit and conservative: most of a gradient points along directions
much stiffer than 2 c. A ReLU network's loss has kinks, its minimiser can lie on one, and there no gradient vanishes:
so with a line search a member has also converged when a window of evaluations has lowered its loss by less than
``tolerance``; which of the two criteria stopped it is recorded.

Letters: E members, P points, C outputs, p parameters, D draws.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from ridgescope.train.ensemble import FlatNetwork, Member
from ridgescope.train.lbfgs import EnsembleLBFGS, Linear
from ridgescope.train.optimisers import OptimiserFactory

Status = Literal["converged", "stagnated", "not converged", "diverged"]

_WINDOW = 20  # evaluations of a line search in which a loss must still fall

# What a step changes, with theta; everything else follows from the config.
_STATE = ("active", "diverged", "stagnated", "window_loss", "steps", "losses", "fits", "gaps", "first_gradient")


class EnsembleTraining(L.LightningModule):
    """Glue between an ensemble, its loss and an optimiser.

    ``initial`` (E, p) are the members' initial parameters; ``inputs`` (D, P, ...) and ``targets`` (D, P, C) the
    training sets of all draws, from which each member takes its own.
    """

    initial: Tensor
    inputs: Tensor
    targets: Tensor
    draw_index: Tensor
    penalty: Tensor
    active: Tensor
    diverged: Tensor
    stagnated: Tensor
    window_loss: Tensor
    steps: Tensor
    losses: Tensor
    fits: Tensor
    gaps: Tensor
    first_gradient: Tensor

    def __init__(
        self,
        network: FlatNetwork,
        initial: Tensor,
        members: Sequence[Member],
        *,
        inputs: Tensor,
        targets: Tensor,
        alpha: float,
        optimiser: OptimiserFactory,
        batch_size: int | None = None,
        tolerance: float = 1e-6,
        max_steps: int = 2000,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.step, self.max_steps = 0, max_steps  # done, and allowed at most
        self.network, self.members, self.alpha = network, list(members), alpha
        self.batch_size, self.tolerance, self.optimiser = batch_size, tolerance, optimiser
        self.num_samples = inputs.shape[1]
        self.theta = nn.Parameter(initial.clone())
        ridge = initial.new_tensor([m.ridge for m in members])
        count = len(members)
        unknown = initial.new_full((count,), float("nan"))
        for name, value in {
            "initial": initial,
            "inputs": inputs,
            "targets": targets,
            "draw_index": torch.tensor([m.draw for m in members]),
            "penalty": ridge * network.kernel_scale * alpha**2,
            "active": torch.ones(count, dtype=torch.bool),
            "diverged": torch.zeros(count, dtype=torch.bool),
            "stagnated": torch.zeros(count, dtype=torch.bool),
            "window_loss": initial.new_full((count,), float("inf")),
            "steps": torch.zeros(count, dtype=torch.int64),
            "losses": unknown,
            "fits": unknown.clone(),
            "gaps": unknown.clone(),
            "first_gradient": unknown.clone(),
        }.items():
            self.register_buffer(name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimiser = self.optimiser.build(self)
        self.learning_rate = optimiser.param_groups[0].get("lr")  # that of the first step; a line search has none
        return optimiser

    def on_fit_start(self) -> None:
        with torch.no_grad():
            self.offset = self.network.outputs(self.initial, self.inputs[self.draw_index])  # h0: (E, P, C)

    def training_step(self, positions: Tensor, batch_idx: int) -> None:
        optimiser = self.optimizers()
        assert isinstance(optimiser, L.pytorch.core.optimizer.LightningOptimizer)
        before = self.theta.detach().clone()
        if self.learning_rate is not None:
            optimiser.param_groups[0]["lr"] = self.learning_rate * self.optimiser.decay(self.step / self.max_steps)
        optimiser.step(closure=partial(self._evaluate, positions))
        self.steps += self.active
        self.step += 1
        if self.batch_size is None:
            self._settle(optimiser.optimizer)
        if not isinstance(optimiser.optimizer, EnsembleLBFGS):
            with torch.no_grad():  # a finished member stays where its gradient was judged; momentum goes no further
                self.theta[~self.active] = before[~self.active]
        if self.batch_size is not None and self.step % (self.num_samples // self.batch_size) == 0:
            # a minibatch gradient says nothing about the optimum: judge by the full one, once per epoch
            with torch.enable_grad():
                self._evaluate(torch.arange(self.num_samples, device=self.device))
            self._settle(None)
        if self.finished:
            self.trainer.should_stop = True

    @property
    def finished(self) -> bool:
        """No step is left, or no member."""
        return self.step >= self.max_steps or not bool(self.active.any())

    def progress(self) -> dict[str, Tensor]:
        """What the steps have changed, by name, for a checkpoint; the optimiser's state is its own."""
        return {"theta": self.theta.detach()} | {name: getattr(self, name) for name in _STATE}

    def resume(self, step: int, progress: dict[str, Tensor]) -> None:
        """Go on after ``step`` steps, from what :meth:`progress` gave then."""
        self.step = step
        with torch.no_grad():
            self.theta.copy_(progress["theta"])
        for name in _STATE:
            setattr(self, name, progress[name].to(self.device))

    def on_train_end(self) -> None:
        optimiser = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimiser, EnsembleLBFGS):
            optimiser.restore()
        with torch.no_grad():  # the results state the loss of the weights that are kept
            residual = self.alpha * (self.network.outputs(self.theta, self.inputs[self.draw_index]) - self.offset)
            self.fits = (residual - self.targets[self.draw_index]).square().sum((1, 2)) / self.num_samples
            self.losses = self.fits + self.penalty * (self.theta - self.initial).square().sum(1)

    def statuses(self) -> list[Status]:
        """``converged`` by the gap; ``stagnated`` by the loss alone, as networks with kinks do."""
        flags = zip(self.diverged.tolist(), self.active.tolist(), self.stagnated.tolist(), strict=True)
        return [
            "diverged" if bad else "not converged" if busy else "stagnated" if flat else "converged"
            for bad, busy, flat in flags
        ]

    def tangent_products(self, points: Tensor, index: Tensor) -> tuple[Linear, Linear]:
        """``v (k, p) -> J v (k, P C)`` and ``u (k, P C) -> J^T u (k, p)``, J = df/dtheta of the members ``index`` (k,)
        at ``points`` (k, p). Columns are output-major (c P + mu), as in the empirical kernel."""
        inputs, theta = self.inputs[self.draw_index[index]], points.detach().clone()

        def predict(row: Tensor) -> Tensor:
            return self.alpha * self.network.outputs(row, inputs).transpose(1, 2).flatten(1)

        pull = vjp(predict, theta)[1]

        def forward(direction: Tensor) -> Tensor:
            return jvp(predict, (theta,), (direction,))[1]

        return forward, lambda cotangent: pull(cotangent)[0]

    def top_curvature(self, iterations: int = 30) -> Tensor:
        """Largest Gauss-Newton eigenvalue (E,) at theta_0, ``2 (s_max(J)^2 / P + c)``, by power iteration: from below,
        to about a percent."""
        forward, backward = self.tangent_products(self.initial, torch.arange(len(self.members)))
        generator = torch.Generator(device="cpu").manual_seed(0)
        vector = torch.randn(self.initial.shape, generator=generator, dtype=torch.float64).to(self.initial)
        top = self.penalty
        for _ in range(iterations):
            vector = vector / vector.norm(dim=1, keepdim=True)
            vector = backward(forward(vector)) / self.num_samples
            top = vector.norm(dim=1)
        return 2 * (top + self.penalty)

    def _evaluate(self, positions: Tensor) -> Tensor:
        """Losses (E,), fresh for the members still training; leaves their gradients in ``theta.grad``."""
        busy = self.active.nonzero()[:, 0]
        draws = self.draw_index[busy]
        raw = self.network.outputs(self.theta[busy], self.inputs[:, positions][draws])
        residual = self.alpha * (raw - self.offset[busy][:, positions]) - self.targets[:, positions][draws]
        fits = residual.square().sum((1, 2)) / residual.shape[1]
        losses = fits + self.penalty[busy] * (self.theta[busy] - self.initial[busy]).square().sum(1)
        (self.theta.grad,) = torch.autograd.grad(losses.sum(), self.theta)
        self.losses = self.losses.index_put((busy,), losses.detach())
        self.fits = self.fits.index_put((busy,), fits.detach())
        return self.losses

    def _settle(self, optimiser: torch.optim.Optimizer | None) -> None:
        """Update gaps; retire members that have converged or diverged."""
        losses, gradient = self.losses, self.theta.grad
        if isinstance(optimiser, EnsembleLBFGS):
            losses, gradient = optimiser.accepted()
        assert gradient is not None
        squared = gradient.square().sum(1)
        self.first_gradient = torch.where(self.first_gradient.isnan(), squared, self.first_gradient)
        bound = squared / (4 * self.penalty * losses)
        relative = (squared / self.first_gradient).sqrt()
        gaps = torch.where(self.penalty > 0, bound, relative)
        self.gaps = torch.where(self.active, gaps, self.gaps)
        self.diverged |= self.active & ~losses.isfinite()
        close = self.gaps <= self.tolerance
        if isinstance(optimiser, EnsembleLBFGS) and int(self.steps.max()) % _WINDOW == 0:
            flat = self.window_loss - losses <= self.tolerance * losses
            self.stagnated |= self.active & flat & ~close
            self.window_loss = losses.clone()
        finished = self.active & (close | self.stagnated | self.diverged)
        if isinstance(optimiser, EnsembleLBFGS) and bool(finished.any()):
            optimiser.freeze(finished)
        self.active &= ~finished
