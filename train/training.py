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

*Controls.* ``linearised`` trains ``h(theta_0) + J(theta_0) (theta - theta_0)`` in place of h, with the same loop. With
``stop="steps"`` only divergence ends a member before ``max_steps``: early stopping, gradient flow, one pass over fresh
samples.

Letters: E members, P points, C outputs, p parameters, D draws, k members still training, b points of a batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp

from ridgescope.train.ensemble import FlatNetwork, Forward, Member, members_per_program
from ridgescope.train.errors import UserError
from ridgescope.train.lbfgs import EnsembleLBFGS, Linear
from ridgescope.train.optimisers import OptimiserFactory

Status = Literal["converged", "stagnated", "stopped", "not converged", "diverged"]

_WINDOW = 20  # evaluations of a line search in which a loss must still fall
# The C library keeps freed arrays of up to 32 MB for the next ones; larger ones go back to the system, and their pages
# cost as much as the arithmetic on them.
_REUSED = 32 * 2**20 - 4096
_JUDGED_EPOCHS = 10  # of minibatches between two judgements, each of which costs about an epoch's work

# What a step changes, with theta; everything else follows from the config.
_STATE = (
    "active",
    "diverged",
    "stagnated",
    "window_loss",
    "steps",
    "losses",
    "fits",
    "gaps",
    "first_gradient",
    "trajectory",
)


class EnsembleTraining(L.LightningModule):
    """Glue between an ensemble, its loss and an optimiser.

    ``initial`` (E, p) are the members' initial parameters; ``inputs`` (D, P, ...) and ``targets`` (D, P, C) the
    training sets of all draws, from which each member takes its own. ``forward`` replaces ``network.apply`` in the
    steps: the same function at lower precision, or compiled.
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
    trajectory: Tensor  # (T, E, quantities), filled by the callback of that name

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
        stop: str = "optimum",
        linearised: bool = False,
        forward: Forward | None = None,
    ) -> None:
        super().__init__()
        if stop not in ("optimum", "steps"):
            raise UserError(f"stop={stop!r} is unknown; choose optimum or steps")
        self.automatic_optimization = False
        self.step, self.max_steps = 0, max_steps  # done, and allowed at most
        self.network, self.members, self.alpha = network, list(members), alpha
        self.batch_size, self.tolerance, self.optimiser = batch_size, tolerance, optimiser
        self.stop, self.linearised, self._forward = stop, linearised, forward or network.apply
        self.num_samples = inputs.shape[1]
        self.penalised = any(member.ridge > 0 for member in members)
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
            "trajectory": initial.new_empty(0),
        }.items():
            self.register_buffer(name, value)
        self._count()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimiser = self.optimiser.build(self)
        self.learning_rate = optimiser.param_groups[0].get("lr")  # that of the first step; a line search has none
        return optimiser

    def on_fit_start(self) -> None:
        self._view: tuple[Tensor, Tensor] | None = None
        # the same memory at every step: fresh memory costs as much as the arithmetic on it
        self._rows, self._moved = torch.empty_like(self.initial), torch.empty_like(self.initial)
        self._group = self._members_at_once()
        everyone = torch.arange(len(self.members), device=self.device)
        with torch.no_grad():
            self.offset = self._raw(
                self.network.unflatten(self.initial), everyone, self._points(everyone)[0]
            )  # h0: (E, P, C)

    def _members_at_once(self) -> int:
        """How many members are evaluated together: on a CPU so many that no step asks for fresh memory."""
        if self.device.type != "cpu":
            return len(self.members)
        points, one = self.batch_size or self.num_samples, self.initial[:1]
        arrays = [points * size for size in self.network.activation_sizes(one, self.inputs[0, :1])]
        arrays += [size * one.itemsize for size in self.network.sizes]
        threads = torch.get_num_threads()
        return max(1, members_per_program(max(arrays), _REUSED) // threads) * threads

    def training_step(self, positions: Tensor, batch_idx: int) -> None:
        optimiser = self.optimizers()
        assert isinstance(optimiser, L.pytorch.core.optimizer.LightningOptimizer)
        if self.learning_rate is not None:
            optimiser.param_groups[0]["lr"] = self.learning_rate * self.optimiser.decay(self.step / self.max_steps)
        if isinstance(optimiser.optimizer, EnsembleLBFGS):
            optimiser.step(closure=partial(self._evaluate, positions))
            self._settle(optimiser.optimizer)
        else:
            self._evaluate(positions)
            if self.batch_size is None:
                self._settle(None)
            # a finished member stays where its gradient was judged; momentum goes no further
            rest = (~self.active).nonzero()[:, 0] if self.num_active < len(self.members) else None
            kept = self.theta.detach()[rest] if rest is not None else None
            optimiser.step()
            if kept is not None:
                self.theta.data[rest] = kept
        self.step += 1
        if self.batch_size is not None:
            self._after_batch(self.num_samples // self.batch_size)
        if self.finished:
            self.trainer.should_stop = True

    def _after_batch(self, per_epoch: int) -> None:
        """A minibatch gradient says nothing about the optimum: judge by the full one, now and then and at the end."""
        if self.step % (_JUDGED_EPOCHS * per_epoch) == 0 or self.step == self.max_steps:
            self._evaluate(torch.arange(self.num_samples, device=self.device), count=False)
            self._settle(None)
        elif self.step % per_epoch == 0:
            diverged = self.active & ~self.losses.isfinite()
            self._retire(diverged, diverged)

    @property
    def finished(self) -> bool:
        """No step is left, or no member."""
        return self.step >= self.max_steps or self.num_active == 0

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
        self._count()

    def _count(self) -> None:
        """Copies on the host of what every step asks; each question to an accelerator would wait for it."""
        self.num_active, self.num_diverged = int(self.active.sum()), int(self.diverged.sum())
        self._view = None

    def on_train_end(self) -> None:
        optimiser = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimiser, EnsembleLBFGS):
            optimiser.restore()
        with torch.no_grad():  # the results state the loss of the weights that are kept
            self.fits = self.training_risks()
            self.losses = self.fits + self.penalty * (self.theta - self.initial).square().sum(1)

    def standing(self) -> Tensor:
        """Parameters (E, p) where the members stand; a line search holds trial points in ``theta``."""
        optimiser = self.optimizers(use_pl_optimizer=False)
        return optimiser.standing() if isinstance(optimiser, EnsembleLBFGS) else self.theta.detach()

    @torch.no_grad()
    def training_risks(self) -> Tensor:
        """Squared error (E,) of each member on its own training set, summed over outputs."""
        everyone = torch.arange(len(self.members), device=self.device)
        return self._squared(everyone, *self._points(everyone))

    def flow_time(self) -> float:
        """The time of gradient flow that the steps so far make, see :mod:`ridgescope.train.trajectory`; NaN where
        they are none of gradient descent."""
        group = self.optimizers(use_pl_optimizer=False).param_groups[0]  # type: ignore[union-attr]
        if self.learning_rate is None or "betas" in group:
            return float("nan")
        decays = sum(self.optimiser.decay(step / self.max_steps) for step in range(self.step))
        rate = 2 * self.learning_rate * self.alpha**2 * self.network.kernel_scale
        return rate * decays / (1 - group["momentum"])

    @torch.no_grad()
    def risks(self, inputs: Tensor, targets: Tensor, chunk: int = 8) -> Tensor:
        """Squared error (E,) on points (n, ...) and targets (n, C) of all members, summed over outputs."""
        parts = torch.arange(len(self.members), device=self.device).split(chunk)
        return torch.cat([self._squared(part, inputs.expand(len(part), *inputs.shape), targets) for part in parts])

    def _squared(self, index: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        ends = self.standing()[index], self.initial[index]
        now, then = (self._raw(self.network.unflatten(theta), index, inputs, self.network.apply) for theta in ends)
        return (self.alpha * (now - then) - targets).square().sum((1, 2)) / inputs.shape[1]

    def statuses(self) -> list[Status]:
        """``converged`` by the gap; ``stagnated`` by the loss alone, as networks with kinks do; ``stopped`` where that
        was asked for."""
        flags = zip(self.diverged.tolist(), self.active.tolist(), self.stagnated.tolist(), strict=True)
        left: Status = "stopped" if self.stop == "steps" else "not converged"
        return [
            "diverged" if bad else left if busy else "stagnated" if flat else "converged" for bad, busy, flat in flags
        ]

    def tangent_products(self, points: Tensor, index: Tensor) -> tuple[Linear, Linear]:
        """``v (k, p) -> J v (k, P C)`` and ``u (k, P C) -> J^T u (k, p)``, J = df/dtheta of the members ``index`` (k,)
        at ``points`` (k, p). Columns are output-major (c P + mu), as in the empirical kernel."""
        inputs = self._points(index)[0]
        theta = self.initial[index] if self.linearised else points.detach().clone()

        def predict(row: Tensor) -> Tensor:
            return self.alpha * self.network.outputs(row, inputs).transpose(1, 2).flatten(1)

        pull = vjp(predict, theta)[1]

        def forward(direction: Tensor) -> Tensor:
            return jvp(predict, (theta,), (direction,))[1]

        return forward, lambda cotangent: pull(cotangent)[0]

    def top_curvature(self, iterations: int = 30) -> Tensor:
        """Largest Gauss-Newton eigenvalue (E,) at theta_0, ``2 (s_max(J)^2 / P + c)``, by power iteration: from below,
        to about a percent."""
        forward, backward = self.tangent_products(self.initial, torch.arange(len(self.members), device=self.device))
        generator = torch.Generator(device="cpu").manual_seed(0)
        vector = torch.randn(self.initial.shape, generator=generator, dtype=torch.float64).to(self.initial)
        top = self.penalty
        for _ in range(iterations):
            vector = vector / vector.norm(dim=1, keepdim=True)
            vector = backward(forward(vector)) / self.num_samples
            top = vector.norm(dim=1)
        return 2 * (top + self.penalty)

    def _raw(
        self, parameters: dict[str, Tensor], index: Tensor | slice, inputs: Tensor, forward: Forward | None = None
    ) -> Tensor:
        """h (k, b, C) of members ``index`` (k,) at their parameters (k, *shape) on inputs (k, b, ...)."""
        if not self.linearised:
            return (forward or self._forward)(parameters, inputs)
        start = self.network.unflatten(self.initial[index])
        moved = {name: value - start[name] for name, value in parameters.items()}
        value, change, *_ = jvp(lambda at: self.network.apply(at, inputs), (start,), (moved,))
        return value + change

    def _points(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Training inputs (k, P, ...) and targets (k, P, C) of members; of one draw without a copy."""
        draws = self.draw_index[index]
        if bool((draws == draws[0]).all()):
            return tuple(x[draws[0]].expand(len(draws), *x.shape[1:]) for x in (self.inputs, self.targets))  # type: ignore[return-value]
        return self.inputs[draws], self.targets[draws]

    def _batch(self, busy: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        if len(positions) < self.num_samples:
            draws = self.draw_index[busy]
            if len(self.inputs) == 1:
                x, y = self.inputs[0, positions], self.targets[0, positions]
                return x.expand(len(draws), *x.shape), y.expand(len(draws), *y.shape)
            return self.inputs[draws[:, None], positions], self.targets[draws[:, None], positions]
        if self._view is None:  # the same until a member retires
            self._view = self._points(busy)
        return self._view

    def _evaluate(self, positions: Tensor, count: bool = True) -> Tensor:
        """Losses (E,), fresh for the members still training; leaves their gradients in ``theta.grad``."""
        everyone = self.num_active == len(self.members)
        busy = torch.arange(len(self.members), device=self.device) if everyone else self.active.nonzero()[:, 0]
        inputs, targets = self._batch(busy, positions)
        offset = self.offset if len(positions) == self.num_samples else self.offset[:, positions]
        offset = offset if everyone else offset[busy]
        gradient, found = self._rows[: len(busy)], []
        for start in range(0, len(busy), self._group):
            some = slice(start, start + self._group)
            rows = some if everyone else busy[some]
            found.append(self._evaluate_group(rows, inputs[some], targets[some], offset[some], gradient[some]))
        losses, fits = (torch.cat(parts) for parts in zip(*found, strict=True))
        with torch.no_grad():
            if everyone:
                self.theta.grad, self.losses, self.fits = gradient, losses, fits
            else:
                self.theta.grad = torch.zeros_like(self.theta)
                self.theta.grad[busy] = gradient
                self.losses = self.losses.index_put((busy,), losses)
                self.fits = self.fits.index_put((busy,), fits)
            if count:
                self.steps += self.active
        return self.losses

    def _evaluate_group(
        self, rows: Tensor | slice, inputs: Tensor, targets: Tensor, offset: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses and fits (k,) of the members ``rows`` on their points (k, b, ...); ``gradient`` (k, p) is filled."""
        theta = self.theta.detach()[rows]
        with torch.enable_grad():
            parameters = {name: value.requires_grad_() for name, value in self.network.unflatten(theta).items()}
            residual = self.alpha * (self._raw(parameters, rows, inputs) - offset) - targets
            fits = residual.square().sum((1, 2)) / residual.shape[1]
            gradients = torch.autograd.grad(fits.sum(), list(parameters.values()))
        with torch.no_grad():
            torch.cat([part.flatten(1) for part in gradients], dim=1, out=gradient)
            fits = fits.detach()
            if not self.penalised:
                return fits, fits
            moved = torch.sub(theta, self.initial[rows], out=self._moved[: len(theta)])
            penalty = self.penalty[rows]
            gradient.addcmul_(moved, 2 * penalty[:, None])
            return fits + penalty * torch.linalg.vector_norm(moved, dim=1).square(), fits

    def _settle(self, optimiser: torch.optim.Optimizer | None) -> None:
        """Update gaps; retire members that have converged or diverged."""
        losses, gradient = self.losses, self.theta.grad
        if isinstance(optimiser, EnsembleLBFGS):
            losses, gradient = optimiser.accepted()
        assert gradient is not None
        squared = torch.linalg.vector_norm(gradient, dim=1).square()
        self.first_gradient = torch.where(self.first_gradient.isnan(), squared, self.first_gradient)
        bound = squared / (4 * self.penalty * losses)
        relative = (squared / self.first_gradient).sqrt()
        gaps = torch.where(self.penalty > 0, bound, relative)
        self.gaps = torch.where(self.active, gaps, self.gaps)
        diverged = self.active & ~losses.isfinite()
        close = self.gaps <= self.tolerance
        if isinstance(optimiser, EnsembleLBFGS) and (self.step + 1) % _WINDOW == 0:
            flat = self.window_loss - losses <= self.tolerance * losses
            self.stagnated |= self.active & flat & ~close
            self.window_loss = losses.clone()
        done = close | self.stagnated if self.stop == "optimum" else torch.zeros_like(close)
        finished = self.active & (done | diverged)
        if isinstance(optimiser, EnsembleLBFGS) and bool(finished.any()):
            optimiser.freeze(finished)
        self._retire(finished, diverged)

    def _retire(self, finished: Tensor, diverged: Tensor) -> None:
        self.diverged |= diverged
        self.active &= ~finished
        self._count()
