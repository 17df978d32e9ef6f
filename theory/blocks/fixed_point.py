"""The block law's fixed point, its guarded solver, and its derivatives.

    G = (A + sum_b gate_b o (J_b phi_b(Q_b) J_b^T))^-1,      Q_b = J_b^T (G o gate_b) J_b / N

G (P, P) is the mean of (K_N + A)^-1 on the training points, A = P lam diag(1/w) + the deterministic kernel.
The map Q -> Q' decreases phi, hence raises G and Q' in the Loewner order, and scaling Q by t > 1 scales Q' by less
than t. A map with both properties has at most one fixed point, which its iteration reaches from anywhere (Yates 1995,
interference functions, here for matrices); from Q = 0 it rises to it. So there is one positive solution at every
width and ridge > 0, and every iterate is positive.

With ``Phi = -phi'``, ``M[X]_b = J_b^T ((G S G) o gate_b) J_b / N``, ``S = sum_b gate_b o (J_b X_b J_b^T)``, the linear
response to a source s is ``dQ = s + M Phi dQ``; ``1 - M Phi`` is positive and self-adjoint in the product <., Phi .>.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ridgescope.theory.blocks.families import BlockFamily

Orders = list[Tensor]  # one symmetric (r, r) matrix per family

TOLERANCE = 1e-11  # relative change of every Q in one iteration
HISTORY = 6


@dataclass(frozen=True)
class FixedPoint:
    """Q of each family, and the iterations taken."""

    orders: Orders
    iterations: int


def mean_inverse(families: Sequence[BlockFamily], base: Tensor, orders: Orders) -> Tensor:
    """``G`` at given Q; ``base`` is A (P, P). Raises ``ValueError`` where A + K is singular in float64."""
    kernel = base
    for family, order in zip(families, orders, strict=True):
        kernel = kernel + family.train(family.scales.shrink(order))
    factor, info = torch.linalg.cholesky_ex((kernel + kernel.T) / 2)
    if int(info) != 0:
        raise ValueError(
            "the kernel with this ridge is singular in float64; use a larger ridge "
            f"(the kernel's diagonal is {float(kernel.diagonal().mean()):.2e})"
        )
    return torch.cholesky_inverse(factor)


def orders_of(families: Sequence[BlockFamily], inverse: Tensor, width: Tensor) -> Orders:
    return [family.order(inverse) / width for family in families]


def solve(
    families: Sequence[BlockFamily],
    base: Tensor,
    width: Tensor,
    start: Orders | None = None,
    limit: int = 2000,
) -> FixedPoint:
    """Iterate with Anderson mixing; a mixed step that is not positive is replaced by a plain one.

    The answer is the fixed point to `TOLERANCE`, or ``RuntimeError``. Cost per iteration P^3 + P^2 r + r^3.
    """
    orders = [torch.zeros_like(f.features[:1].T @ f.features[:1]) for f in families] if start is None else start
    past: list[Tensor] = []
    moves: list[Tensor] = []
    for iteration in range(1, limit + 1):
        new = orders_of(families, mean_inverse(families, base, orders), width)
        change = max(float((a - b).norm()) / max(float(a.norm()), 1e-300) for a, b in zip(new, orders, strict=True))
        if not math.isfinite(change):
            raise RuntimeError("the block law's iteration left the finite numbers; please report the kernel")
        if change <= TOLERANCE:
            return FixedPoint(new, iteration)
        flat, image = _flatten(orders), _flatten(new)
        past.append(image)
        moves.append(image - flat)
        past, moves = past[-HISTORY:], moves[-HISTORY:]
        mixed = _unflatten(mix(past, moves), new)
        orders = mixed if _positive(mixed) else new
    raise RuntimeError(
        f"the block law did not converge in {limit} iterations (last change {change:.1e}); use a larger ridge"
    )


def mix(past: list[Tensor], moves: list[Tensor]) -> Tensor:
    """Type-II Anderson mixing (Walker and Ni 2011)."""
    if len(past) == 1:
        return past[0]
    steps = torch.stack([b - a for a, b in pairwise(moves)], dim=1)
    jumps = torch.stack([b - a for a, b in pairwise(past)], dim=1)
    gram = steps.T @ steps
    gram.diagonal().add_(1e-14 * gram.diagonal().max())
    return past[-1] - jumps @ torch.linalg.solve(gram, steps.T @ moves[-1])


def _positive(orders: Orders) -> bool:
    for order in orders:
        if not bool(torch.isfinite(order).all()):
            return False
        shifted = order.clone()
        shifted.diagonal().add_(1e-9 * float(order.diagonal().abs().mean()))
        if int(torch.linalg.cholesky_ex(shifted)[1]) != 0:
            return False
    return True


def _flatten(orders: Orders) -> Tensor:
    return torch.cat([order.flatten() for order in orders])


def _unflatten(flat: Tensor, like: Orders) -> Orders:
    parts = flat.split([order.numel() for order in like])
    return [part.view(order.shape) for part, order in zip(parts, like, strict=True)]


class Linearised:
    """The operators M and Phi at a fixed point, and solves with ``1 - M Phi``."""

    def __init__(self, families: Sequence[BlockFamily], inverse: Tensor, orders: Orders, width: Tensor) -> None:
        self.families, self.inverse, self.width = families, inverse, width
        pairs = zip(families, orders, strict=True)
        self.responders = [family.scales.responder(order) for family, order in pairs]

    def respond(self, change: Orders) -> Orders:
        """Phi."""
        return [respond(x) for respond, x in zip(self.responders, change, strict=True)]

    def propagate(self, weights: Orders) -> Orders:
        """M."""
        kernel = sum_kernels(self.families, weights)
        return orders_of(self.families, self.inverse @ kernel @ self.inverse, self.width)

    def solve(self, source: Orders, tolerance: float = 1e-11, limit: int = 500) -> Orders:
        """``(1 - M Phi)^-1 source`` by conjugate gradients in the product <., Phi .>."""
        x = [torch.zeros_like(s) for s in source]
        residual = [s.clone() for s in source]
        image = self.respond(residual)
        square = _dot(residual, image)
        goal = tolerance**2 * square
        direction, direction_image = residual, image
        for _ in range(limit):
            if square <= goal:
                return x
            applied = [d - m for d, m in zip(direction, self.propagate(direction_image), strict=True)]
            step = square / _dot(applied, direction_image)
            if not step > 0:
                break
            x = [a + step * d for a, d in zip(x, direction, strict=True)]
            residual = [r - step * a for r, a in zip(residual, applied, strict=True)]
            image = self.respond(residual)
            previous, square = square, _dot(residual, image)
            ratio = square / previous
            direction = [r + ratio * d for r, d in zip(residual, direction, strict=True)]
            direction_image = [r + ratio * d for r, d in zip(image, direction_image, strict=True)]
        raise RuntimeError("the block law's linear response did not converge; use a larger ridge")

    def solve_transposed(self, source: Orders) -> Orders:
        """``(1 - Phi M)^-1 source = source + Phi (1 - M Phi)^-1 M source``."""
        inner = self.respond(self.solve(self.propagate(source)))
        return [s + i for s, i in zip(source, inner, strict=True)]


def sum_kernels(families: Sequence[BlockFamily], weights: Orders) -> Tensor:
    """``sum_b gate_b o (J_b weights_b J_b^T)`` on the training points."""
    total = families[0].train(weights[0])
    for family, weight in zip(families[1:], weights[1:], strict=True):
        total = total + family.train(weight)
    return total


def _dot(a: Orders, b: Orders) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def attach(value: Orders, image: Orders, solve_adjoint: Callable[[Orders], Orders]) -> Orders:
    """``value``, a solution of value = f(value, theta), with the gradient in theta of the implicit function.

    ``image`` is f(value, theta) with value held fixed and theta in the graph; ``solve_adjoint`` applies
    ``(1 - f_value^T)^-1``.
    """
    return list(_Attach.apply(solve_adjoint, len(value), *value, *image))


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solve_adjoint: Callable[[Orders], Orders], count: int, *tensors: Tensor) -> Any:
        ctx.solve_adjoint, ctx.count = solve_adjoint, count
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        symmetric = [(g + g.T) / 2 for g in grads]
        return None, None, *([None] * ctx.count), *ctx.solve_adjoint(symmetric)
