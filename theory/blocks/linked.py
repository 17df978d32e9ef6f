"""Blocks of an upper layer together with what they bring to the weights of the layer below, whose features they share.

Given the lower layer, each of N upper channels n has features a_n of its own and adds f_n/N to the Jacobian Phi of the
lower weights:

    K = (1/N) sum_n a_n a_n^T + Phi Phi^T,      Phi = (1/N) sum_n f_n

(A + K)^-1 is the upper corner of the inverse of [[A + sum a_n a_n^T/N, i Phi], [i Phi^T, 1]], which is a sum over
independent n. Leave-one-out on that sum, with diag(G, H) the mean of the inverse, gives

    X_n = [a_n, f_n H^(1/2)/sqrt(N)],     R_n = X_n (1 + X_n^T G X_n/N)^-1 X_n^T
    G = (A + E[R])^-1,     H = (1 + E[f^T Q f]/N)^-1,     Q_n = G - G R_n G/N

H is taken diagonal. Derivation and risk: docs/theory/finite_width_conv.md, section 7. Letters as in
`ridgescope.theory.blocks.sampled`; l lower weights, s sides (below), q copies of the points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.blocks.deep_law import iterate
from ridgescope.theory.blocks.families import PointKernel
from ridgescope.theory.blocks.fixed_point import mean_inverse
from ridgescope.theory.blocks.law import checked_problem, checked_width, require_distinct
from ridgescope.theory.blocks.pairs import FLOOR, symmetric
from ridgescope.theory.blocks.sampled import CHUNK, Averages, SampledFamily, forward, within


@dataclass(frozen=True)
class LinkedFamily:
    """M equally likely examples of an upper channel on n points, training points first.

    ``own`` a (M, r, q, n), ``below`` f (M, l, s, q, n). The q copies of the points hold all that the channel does to
    ``outputs`` outputs: a block counts as the sum of F F^T over copies, divided by ``outputs``. In a trace form each
    lower weight has a feature for each output instead: s of them are not zero, of ``sides``.
    """

    own: Float64[Tensor, "m r q n"]
    below: Float64[Tensor, "m l s q n"]
    outputs: int = 1
    sides: int = 1


@dataclass(frozen=True)
class LinkedKernel:
    """``fixed`` + independent ``families`` + the ``linked`` one; the first ``size`` points are trained on."""

    size: int
    linked: LinkedFamily
    families: Sequence[SampledFamily] = ()
    fixed: PointKernel | None = None


@dataclass(frozen=True)
class _Piece:
    """Some examples. ``root`` X (1 + X^T G X/N)^(-1/2) as rows, of weight ``weight``; ``reach`` on evaluation points.

    ``damped`` (m, l s, q, P): (1 + X X^T G/N)^-1 on the columns of X from below; ``order`` their X^T Q X/N.
    """

    weight: float
    root: Tensor
    reach: Tensor
    damped: Tensor | None = None
    damped_eval: Tensor | None = None
    order: Tensor | None = None


class LinkedProblem:
    """The law of a `LinkedKernel` with N = ``width``; ``limit`` is the kernel at infinite width."""

    def __init__(
        self,
        kernel: LinkedKernel,
        targets: Tensor,
        width: Number,
        ridge: Number,
        weights: Tensor | None,
        limit: PointKernel,
        tolerance: float,
    ) -> None:
        self.kernel, self.share, self.limit, self.tolerance = kernel, 1 / float(checked_width(width)), limit, tolerance
        self.size, self.linked = kernel.size, kernel.linked
        self.lower, self.examples = self.linked.below.shape[1], len(self.linked.own)
        self.checked = checked_problem(targets, weights, ridge, self.size)
        self.targets, self.weights, self.ridge = self.checked
        require_distinct(limit.train)
        self.base = torch.diag(self.size * self.ridge / self.weights)
        if kernel.fixed is not None:
            self.base = self.base + kernel.fixed.train

    @torch.no_grad()
    def solve(self, start: list[Tensor] | None) -> Averages:
        begin = [self.limit.train, torch.zeros(self.lower, dtype=torch.float64)]
        if start is not None:
            begin = [start[0], start[1] if len(start[1]) == self.lower else begin[1]]
        units = [1 / float(begin[0].norm()), self.lower**-0.5]
        state, iterations = iterate(self._step, begin, units, self._positive, tolerance=self.tolerance)
        inverse, weights = self._resolvent(state[0]), self.weights
        alpha = inverse @ self.targets
        source = inverse @ (inverse / weights[:, None])  # G W^-1 G
        pieces = list(self._pieces(inverse, state[1], response=True))
        (psi, below), (slope, _) = (self._response(pieces, inverse, probe) for probe in (alpha @ alpha.T, source))
        return Averages(
            inverse,
            alpha,
            ((inverse @ psi) * inverse).sum(1),
            (source.diagonal() / weights).sum() + (source * slope).sum(),
            *self._evaluate(pieces, inverse, alpha, psi, below),
            state,
            iterations,
        )

    def _resolvent(self, kernel: Tensor) -> Tensor:
        return mean_inverse([], self.base + kernel, [])

    def _positive(self, state: list[Tensor]) -> bool:
        definite = int(torch.linalg.cholesky_ex(self.base + symmetric(state[0]))[1]) == 0
        return definite and bool((state[1] >= 0).all())

    def _step(self, state: list[Tensor]) -> list[Tensor]:
        """E[R] and E[f^T Q f]/N."""
        inverse, (total, orders) = self._resolvent(state[0]), (torch.zeros_like(x) for x in state)
        for piece in self._pieces(inverse, state[1]):
            rows = piece.root.flatten(0, 2)
            total += piece.weight * (rows.T @ rows)
            if piece.order is not None:
                orders += piece.order.sum(0).view(self.lower, -1).sum(1)
        damping = 1 / (1 + state[1])
        return [total, orders / (self.examples * self.linked.sides * self.share * damping)]

    def _pieces(self, inverse: Tensor, below: Tensor, *, response: bool = False) -> Iterator[_Piece]:
        for family in self.kernel.families:
            examples, rank, copies, size = family.features.shape
            piece = max(1, CHUNK // (rank * copies * size))
            parts = family.features.split(piece), family.features_eval.split(piece)
            for rows, others in zip(*parts, strict=True):
                factor = self._factor(rows, inverse)
                reach = forward(factor, others) if response else others[..., :0]
                yield _Piece(1 / (examples * copies), forward(factor, rows), reach)
        linked, size = self.linked, self.size
        weight = 1 / (self.examples * linked.outputs)
        scale = (self.share / (1 + below)).sqrt()[:, None, None, None]
        piece = max(1, CHUNK // linked.own[0].numel())
        for own, lower in zip(linked.own.split(piece), linked.below.split(piece), strict=True):
            seen = lower[..., : None if response else size] * scale
            lifted = seen.flatten(1, 2)
            every = torch.cat([own[..., : lifted.shape[-1]], lifted], 1)
            rows, others = _compressed(every, size)
            factor = self._factor(rows, inverse)
            root, reach = forward(factor, rows), forward(factor, others)
            mine = lifted[..., :size]
            flow = (mine @ inverse).flatten(2)
            back = flow @ root.flatten(2).mT * self.share
            if not response:
                order = (flow * mine.flatten(2)).sum(2) * self.share - back.square().sum(2)
                yield _Piece(weight, root, reach, order=order)
                continue
            whole = torch.cat([root, reach], 3)
            damped = lifted - (back @ whole.flatten(2)).view(lifted.shape)
            order = flow @ damped[..., :size].flatten(2).mT * self.share
            yield _Piece(weight, root, reach, damped[..., :size].contiguous(), damped[..., size:].contiguous(), order)

    def _factor(self, rows: Tensor, inverse: Tensor) -> Tensor:
        gram = (rows @ inverse).flatten(2) @ rows.flatten(2).mT * self.share
        return torch.linalg.cholesky((gram + gram.mT) / 2 + torch.eye(rows.shape[1], dtype=torch.float64))

    def _response(self, pieces: list[_Piece], inverse: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """Psi on points, and N H Psi_H of the lower weights."""

        def pull(state: list[Tensor]) -> list[Tensor]:
            seen, total, lower = probe + inverse @ state[0] @ inverse, *(torch.zeros_like(x) for x in state)
            spread = state[1].repeat_interleave(self.linked.below.shape[2])
            for piece in pieces:
                answer = within(piece.root, seen) @ piece.root.flatten(2)
                total += piece.weight * self.share * (piece.root.flatten(0, 2).T @ answer.reshape(-1, self.size))
                if piece.damped is None or piece.order is None:
                    continue
                weighed = piece.damped * spread[:, None, None]
                total -= self.share / self.examples * (weighed.flatten(0, 2).T @ piece.damped.flatten(0, 2))
                own = ((piece.damped @ seen) * piece.damped).sum((0, 2, 3)) / self.linked.outputs
                change = (piece.order.square() @ spread).sum(0) - own
                lower += change.view(self.lower, -1).sum(1) / (self.share * self.examples * self.linked.sides)
            return [symmetric(total), lower]

        begin = pull([torch.zeros_like(probe), torch.zeros(self.lower, dtype=torch.float64)])
        units = [1 / (float(part.norm()) or 1.0) for part in begin]
        (psi, below), _ = iterate(pull, begin, units, tolerance=self.tolerance)
        return psi, below

    def _evaluate(
        self, pieces: list[_Piece], inverse: Tensor, alpha: Tensor, psi: Tensor, below: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean predictions (T, C) and variances (T,)."""
        seen = alpha @ alpha.T + inverse @ psi @ inverse
        spread = below.repeat_interleave(self.linked.below.shape[2])[:, None, None]
        cross, noise, own = (torch.zeros_like(x) for x in (self.limit.cross, self.limit.cross, self.limit.own))
        for piece in pieces:
            rows, others = piece.root.flatten(0, 2), piece.reach.flatten(0, 2)
            answer = (within(piece.root, seen) @ piece.reach.flatten(2)).reshape(others.shape)
            cross += piece.weight * (others.T @ rows)
            noise += piece.weight * self.share * (answer.T @ rows)
            own += piece.weight * self.share * (answer * others).sum(0)
            if piece.damped is not None and piece.damped_eval is not None:
                weighed = (piece.damped_eval * spread).flatten(0, 2) * self.share / self.examples
                noise -= weighed.T @ piece.damped.flatten(0, 2)
                own -= (weighed * piece.damped_eval.flatten(0, 2)).sum(0)
        if self.kernel.fixed is not None:
            cross = cross + self.kernel.fixed.cross
        shadow = cross @ inverse  # rows k(x)^T G
        variance = own - 2 * (shadow * noise).sum(1) + ((shadow @ psi) * shadow).sum(1)
        return cross @ alpha, variance


def _compressed(rows: Float64[Tensor, "m r q n"], size: int) -> tuple[Tensor, Tensor]:
    """On training and evaluation points: the same kernel among and with training points from at most q P features."""
    train, others = rows[..., :size], rows[..., size:]
    wanted, copies = train.flatten(2), rows.shape[2]
    if rows.shape[1] <= wanted.shape[2]:
        return train, others
    gram = wanted.mT @ wanted
    floor = FLOOR * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    factor = torch.linalg.cholesky(gram + floor * torch.eye(wanted.shape[2], dtype=torch.float64))
    across = torch.linalg.solve_triangular(factor, wanted.mT @ others.flatten(2), upper=False)
    return factor.mT.unflatten(2, (copies, size)).contiguous(), across.unflatten(2, (copies, others.shape[-1]))
