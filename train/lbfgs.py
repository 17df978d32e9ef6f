"""L-BFGS for an ensemble, preconditioned by each member's own tangent kernel.

The loss ``(1/P) |f(theta) - y|^2 + c |theta - theta_0|^2`` has the Gauss-Newton Hessian ``2 (J^T J / P + c)``. With
the Gram matrix ``K = J J^T`` of the training points its inverse is, exactly,

    H0 = (1/2c) (1 - J^T (K + P c)^-1 J)                    (Woodbury; n = P C rows instead of p parameters)

J and K are taken at one point for all members, first theta_0, and taken afresh every ``refresh`` evaluations; so H0
is positive definite for any network, and L-BFGS learns the rest between two refreshes (Nocedal and Wright, Numerical
Optimization, algorithm 7.4, with H0 in the middle of its two-loop recursion). Lazy networks converge in about ten
evaluations whatever the condition number.

Members are independent: each has its own step length, history and line search, all advanced by one evaluation.
Letters: E members, p parameters, m pairs kept, n = P C residuals.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
Linearise = Callable[[Tensor, Tensor], Linear]
"""``(points (k, p), members (k,)) -> (gradients (k, p) -> H0 gradients (k, p))`` at these points of these members."""

_ARMIJO = 1e-4
# A pair whose curvature is below rounding would poison the history.
_MIN_CURVATURE = 1e-14


def kernel_preconditioner(jvp: Linear, vjp: Linear, factors: list[Tensor], penalty: Tensor) -> Linear:
    """``gradient (k, p) -> H0 gradient``; see the module's equation.

    ``jvp`` (k, p) -> (k, n) and ``vjp`` (k, n) -> (k, p) are products with J; ``factors`` holds the lower Cholesky
    factor (n, n) of ``K + P c`` for each member; ``penalty`` (k,) is c > 0.
    """

    def apply(gradient: Tensor) -> Tensor:
        pairs = zip(jvp(gradient), factors, strict=True)
        dual = torch.stack([torch.cholesky_solve(row[:, None], factor)[:, 0] for row, factor in pairs])
        return (gradient - vjp(dual)) / (2 * penalty[:, None])

    return apply


class EnsembleLBFGS(torch.optim.Optimizer):
    """One parameter matrix (E, p); ``step(closure)`` makes one evaluation and moves every member to its next trial.

    The closure returns the losses (E,) and leaves their gradients in ``theta.grad``. ``theta`` holds a *trial*
    point between steps; :meth:`restore` puts back the last accepted one.
    Cost per step: one closure, one preconditioning, 4 m E p multiply-adds. Memory: (2 m + 5) E p numbers.
    All that it knows is in ``state``: with it put back, the next step is the one that would have followed.
    """

    def __init__(self, theta: Tensor, linearise: Linearise, *, history: int = 6, refresh: int = 10) -> None:
        super().__init__([theta], {})
        self.linearise, self.history, self.refresh = linearise, history, refresh
        self._precondition: Linear | None = None  # made of state["anchor"], the points of the members "covered"

    @property
    def _theta(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    def freeze(self, members: Tensor) -> None:
        """Members (boolean, (E,)) that from now on stay where they were last accepted."""
        state = self.state[self._theta]
        state["frozen"] |= members
        state["direction"][members] = 0
        self._theta.data[members] = state["point"][members]

    def accepted(self) -> tuple[Tensor, Tensor]:
        """Losses (E,) and gradients (E, p) where the members stand, whatever the last trial gave."""
        state = self.state[self._theta]
        return state["loss"], state["gradient"]

    def standing(self) -> Tensor:
        """The last accepted points (E, p)."""
        state = self.state[self._theta]
        return state["point"] if state else self._theta.detach()

    def restore(self) -> None:
        self._theta.data.copy_(self.standing())

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        assert closure is not None
        with torch.enable_grad():
            losses = closure().detach()
        theta, gradient = self._theta.data, self._theta.grad
        assert gradient is not None
        state = self.state[self._theta]
        if not state:
            self._start(state, theta, losses, gradient)
            accepted = torch.ones_like(losses, dtype=torch.bool)
        else:
            accepted = self._line_search(state, theta, losses, gradient)
            state["evaluations"] += 1
        moving = ~state["frozen"]
        if int(state["evaluations"]) % self.refresh == 0:
            state["covered"] = moving.nonzero()[:, 0]
            state["anchor"] = state["point"][state["covered"]].clone()
            self._linearise_at_anchor(state)
            state["curvature"].zero_()
        else:
            moving = moving & accepted
            if self._precondition is None:  # after a restart
                self._linearise_at_anchor(state)
        if bool(moving.any()):
            self._new_direction(state, moving)
        theta.copy_(state["point"] + state["step"][:, None] * state["direction"])
        return losses

    def _start(self, state: dict[str, Tensor], theta: Tensor, losses: Tensor, gradient: Tensor) -> None:
        shape = (self.history, *theta.shape)
        state["point"], state["loss"], state["gradient"] = theta.clone(), losses.clone(), gradient.clone()
        state["direction"] = torch.zeros_like(theta)
        state["step"], state["slope"] = torch.ones_like(losses), torch.zeros_like(losses)
        state["frozen"] = torch.zeros_like(losses, dtype=torch.bool)
        state["evaluations"] = torch.zeros((), dtype=torch.int64)
        state["moves"], state["changes"] = theta.new_zeros(shape), theta.new_zeros(shape)
        state["curvature"] = losses.new_zeros(self.history, len(losses))  # s.y of each pair; 0 = empty

    def _linearise_at_anchor(self, state: dict[str, Tensor]) -> None:
        # the old factors go before the new ones are made: they are the largest tensors of all
        self._precondition = None
        with torch.enable_grad():  # the kernel is made of backward passes
            self._precondition = self.linearise(state["anchor"], state["covered"])

    def _line_search(self, state: dict[str, Tensor], theta: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        """Armijo: accepted members move and learn a pair, the others shorten their step."""
        bound = state["loss"] + _ARMIJO * state["step"] * state["slope"]
        # Near the optimum the decrease drowns in rounding: allow that much.
        slack = 4 * torch.finfo(losses.dtype).eps * state["loss"].abs()
        accepted = losses <= bound + slack
        move, change = theta - state["point"], gradient - state["gradient"]
        curvature = (move * change).sum(1)
        keep = accepted & (curvature > _MIN_CURVATURE * move.norm(dim=1) * change.norm(dim=1))
        for name, new in (("moves", move), ("changes", change), ("curvature", curvature)):
            old = state[name]
            mask = keep.view(1, -1, *[1] * (old.ndim - 2))
            state[name] = torch.where(mask, torch.cat([old[1:], new[None]]), old)
        for name, value in (("point", theta), ("gradient", gradient), ("loss", losses)):
            mask = accepted.view(-1, *[1] * (value.ndim - 1))
            state[name] = torch.where(mask, value, state[name])
        # minimiser of the parabola through loss, slope and the rejected loss; NaN (overflow) takes the floor
        excess = losses - state["loss"] - state["step"] * state["slope"]
        ratio = torch.nan_to_num(-0.5 * state["step"] * state["slope"] / excess, nan=0.1).clamp(0.1, 0.5)
        state["step"] = torch.where(accepted, torch.ones_like(losses), ratio * state["step"])
        return accepted

    def _new_direction(self, state: dict[str, Tensor], moving: Tensor) -> None:
        """Two-loop recursion for all members at once; an empty pair has weight zero."""
        assert self._precondition is not None
        weight = torch.where(state["curvature"] > 0, 1 / state["curvature"], torch.zeros_like(state["curvature"]))
        q, alphas = state["gradient"].clone(), []
        for i in reversed(range(self.history)):
            alpha = weight[i] * (state["moves"][i] * q).sum(1)
            q -= alpha[:, None] * state["changes"][i]
            alphas.append(alpha)
        r = torch.zeros_like(q)
        r[state["covered"]] = self._precondition(q[state["covered"]])
        for i, alpha in zip(range(self.history), reversed(alphas), strict=True):
            beta = weight[i] * (state["changes"][i] * r).sum(1)
            r += (alpha - beta)[:, None] * state["moves"][i]
        slope = -(r * state["gradient"]).sum(1)
        state["direction"] = torch.where(moving[:, None], -r, state["direction"])
        state["slope"] = torch.where(moving, slope, state["slope"])
        state["step"] = torch.where(moving, torch.ones_like(slope), state["step"])
