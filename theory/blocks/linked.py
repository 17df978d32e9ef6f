"""Blocks of an upper layer together with what they bring to the weights of the layer below, whose features they share.

Given the lower layer, each of N upper channels n has features a_n of its own and adds f_n/N to the Jacobian Phi of the
lower weights:

    K = (1/N) sum_n a_n a_n^T + Phi Phi^T,      Phi = (1/N) sum_n f_n

(A + K)^-1 is the upper corner of the inverse of [[A + sum a_n a_n^T/N, i Phi], [i Phi^T, 1]], which is a sum over
independent n. Leave-one-out on that sum, with diag(G, H) the mean of the inverse, gives

    X_n = [a_n, f_n L^-T/sqrt(N)],     R_n = X_n (1 + X_n^T G X_n/N)^-1 X_n^T
    G = (A + E[R])^-1,     H = (1 + E[f^T Q f]/N)^-1 = L^-T L^-1,     Q_n = G - G R_n G/N

H is taken block-diagonal, a block for each lower channel. Derivation: docs/theory/finite_width_conv.md, section 7.
Letters as in `ridgescope.theory.blocks.sampled`; l lower channels, g weights of each, s sides (below), q copies of the
points.
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
from ridgescope.theory.blocks.pairs import symmetric
from ridgescope.theory.blocks.sampled import (
    CHUNK,
    Averages,
    Root,
    SampledFamily,
    forward,
    predictions,
    root_factor,
    roots,
)


@dataclass(frozen=True)
class LinkedFamily:
    """M equally likely examples of an upper channel on n points, training points first.

    ``own`` a (M, r, q, n), ``below`` f (M, l, g, s, q, n). The q copies of the points hold all that the channel does to
    ``outputs`` outputs: a block counts as the sum of F F^T over copies, divided by ``outputs``. In a trace form each
    lower weight has a feature for each output instead: s of them are not zero, of ``sides``.
    """

    own: Float64[Tensor, "m r q n"]
    below: Float64[Tensor, "m l g s q n"]
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
class _Below:
    """X_f, the columns of X from below, in some examples: ``order`` X_f^T Q X_f/N, (m, l g s, l g s).

    ``damped`` (m, l g s, q, n) is (1 + X X^T G/N)^-1 X_f on training and on evaluation points.
    """

    damped: Tensor
    damped_eval: Tensor
    order: Tensor


@dataclass(frozen=True)
class _Narrow(Root):
    """R of some linked examples as rows of a root."""

    below: _Below


@dataclass(frozen=True)
class _Wide:
    """R of some examples as it is, ``train`` (m, q, P, q, P) and ``cross`` (m, q, T, q, P)."""

    weight: float
    train: Tensor
    cross: Tensor
    below: _Below

    def sandwich(self, seen: Tensor) -> Tensor:
        return _contracted(self.train @ seen, self.train)

    def evaluated(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answer = self.cross @ seen
        cross = _trace(self.cross)
        return cross, _contracted(answer, self.train), (answer * self.cross).sum((0, 1, 3, 4))


_Piece = Root | _Wide


def _contracted(left: Float64[Tensor, "m q n q p"], right: Float64[Tensor, "m q p q p"]) -> Tensor:
    """``sum_mcd left[m, c, :, d] right[m, c, :, d]^T``."""
    return left.permute(2, 0, 1, 3, 4).flatten(1) @ right.permute(2, 0, 1, 3, 4).flatten(1).T


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
        self.lower, self.examples = self.linked.below.shape[1:4], len(self.linked.own)
        self.checked = checked_problem(targets, weights, ridge, self.size)
        self.targets, self.weights, self.ridge = self.checked
        require_distinct(limit.train)
        self.base = torch.diag(self.size * self.ridge / self.weights)
        if kernel.fixed is not None:
            self.base = self.base + kernel.fixed.train

    @torch.no_grad()
    def solve(self, start: list[Tensor] | None) -> Averages:
        begin = [self.limit.train, self._nothing()]
        if start is not None:
            begin = [start[0], start[1] if start[1].shape == begin[1].shape else begin[1]]
        units = [1 / float(begin[0].norm()), begin[1].numel() ** -0.5]
        state, iterations = iterate(self._step, begin, units, self._positive, tolerance=self.tolerance)
        inverse, weights = self._resolvent(state[0]), self.weights
        alpha = inverse @ self.targets
        source = inverse @ (inverse / weights[:, None])  # G W^-1 G
        pieces = list(self._pieces(state, inverse))
        psi, below = self._response(pieces, inverse, alpha @ alpha.T, self.tolerance)
        slope, _ = self._response(pieces, inverse, source, 30 * self.tolerance)  # of a diagnostic
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

    def _nothing(self) -> Tensor:
        return torch.zeros(self.lower[0], self.lower[1], self.lower[1], dtype=torch.float64)

    def _positive(self, state: list[Tensor]) -> bool:
        definite = int(torch.linalg.cholesky_ex(self.base + symmetric(state[0]))[1]) == 0
        return definite and not bool(torch.linalg.cholesky_ex(_damping(state[1]))[1].any())

    def _step(self, state: list[Tensor]) -> list[Tensor]:
        """E[R] and E[f^T Q f]/N."""
        inverse, precision = self._resolvent(state[0]), self.base + state[0]
        total, orders = (torch.zeros_like(part) for part in state)
        for piece in roots(self.kernel.families, inverse, self.share, evaluation=False):
            total += piece.weight * piece.mean()
        weight = 1 / (self.examples * self.linked.outputs)
        for own, lifted in self._columns(state[1], slice(self.size)):
            if self._wide:
                resolvent = self._inner(own, lifted, precision)
                orders += self._diagonal(lifted.flatten(2) @ resolvent, lifted.flatten(2))
                copies = own.shape[2]
                seen = _blocks(resolvent, copies, copies)
                shrunk = len(own) * copies * precision - precision @ _trace(seen) @ precision
                total += weight / self.share * shrunk
            else:
                rows = torch.cat([own, lifted], 1)
                root = forward(root_factor(rows, inverse, self.share), rows)
                flow = (lifted @ inverse).flatten(2)
                back = flow @ root.flatten(2).mT * self.share
                orders += self._diagonal(flow, lifted.flatten(2)) - self._diagonal(back, back) / self.share
                total += weight * Root(weight, root, root[..., :0]).mean()
        factor = torch.linalg.cholesky(_damping(state[1]))
        return [symmetric(total), factor @ orders @ factor.mT / (self.examples * self.linked.sides * self.share)]

    def _diagonal(self, left: Float64[Tensor, "m l a"], right: Float64[Tensor, "m l a"]) -> Tensor:
        """The blocks of each lower channel in ``left right^T/N``, summed over examples and sides."""
        ordered = (part.unflatten(1, self.lower).permute(1, 2, 0, 3, 4).flatten(2) for part in (left, right))
        first, second = ordered
        return first @ second.mT * self.share

    @property
    def _wide(self) -> bool:
        """Whether matrices of all copies of the points cost less than those of all features."""
        rank = self.linked.own.shape[1] + self.lower.numel()
        return 3 * rank > 2 * self.linked.own.shape[2] * self.size

    def _columns(self, below: Tensor, points: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """a and f H^(1/2)/sqrt(N) on these points, some examples at a time."""
        factor = torch.linalg.cholesky(_damping(below)) / self.share**0.5  # H = L^-T L^-1
        piece = max(1, CHUNK // self.linked.own[0].numel())
        for own, lower in zip(self.linked.own.split(piece), self.linked.below.split(piece), strict=True):
            columns = lower[..., points]
            lifted = torch.linalg.solve_triangular(factor, columns.flatten(3), upper=False).view(columns.shape)
            yield own[..., points], lifted.flatten(1, 3)

    def _pieces(self, state: list[Tensor], inverse: Tensor) -> Iterator[_Piece]:
        """All that the linear response and the evaluation points need."""
        yield from roots(self.kernel.families, inverse, self.share, evaluation=True)
        precision, size = self.base + state[0], self.size
        weight = 1 / (self.examples * self.linked.outputs)
        for own, lifted in self._columns(state[1], slice(None)):
            every = torch.cat([own, lifted], 1)
            rows, others, mine = every[..., :size], every[..., size:], lifted[..., :size]
            if self._wide:
                copies = rows.shape[2]
                resolvent = self._inner(own[..., :size], mine, precision)
                flow = mine.flatten(2) @ resolvent
                across = others.flatten(2).mT @ rows.flatten(2) @ resolvent  # X X^T Q
                blocks = _blocks(resolvent, copies, copies).transpose(2, 3)
                whole = -(precision @ blocks @ precision).transpose(2, 3)
                whole.diagonal(dim1=1, dim2=3).add_(precision[:, :, None])
                cross = _blocks(across, copies, copies) @ precision
                reached = lifted[..., size:] - self.share * (mine.flatten(2) @ across.mT).view(lifted[..., size:].shape)
                damped = flow.unflatten(2, (copies, size)) @ precision
                order = flow @ mine.flatten(2).mT * self.share
                yield _Wide(weight, whole / self.share, cross, _Below(damped, reached, order))
                continue
            factor = root_factor(rows, inverse, self.share)
            root, reach = forward(factor, rows), forward(factor, others)
            flow = (mine @ inverse).flatten(2)
            back = flow @ root.flatten(2).mT * self.share
            whole = lifted - (back @ torch.cat([root, reach], 3).flatten(2)).view(lifted.shape)
            order = flow @ whole[..., :size].flatten(2).mT * self.share
            yield _Narrow(weight, root, reach, _Below(whole[..., :size].contiguous(), whole[..., size:], order))

    def _inner(self, own: Tensor, lifted: Tensor, precision: Tensor) -> Tensor:
        """Q = (G^-1 + X X^T/N)^-1 of each example, (m, q P, q P)."""
        copies, parts = own.shape[2], [part.flatten(2) for part in (own, lifted)]
        inner = (parts[0].mT @ parts[0] + parts[1].mT @ parts[1]) * self.share
        _blocks(inner, copies, copies).diagonal(dim1=1, dim2=3).add_(symmetric(precision)[:, :, None])
        return torch.cholesky_inverse(torch.linalg.cholesky(inner))

    def _response(
        self, pieces: list[_Piece], inverse: Tensor, probe: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Psi on points, and N L^-1 Psi_H L^-T of the lower weights, H = L^-T L^-1."""
        kept = self.share / self.examples
        scale = 1 / (self.share**2 * self.examples * self.linked.sides)

        def pull(state: list[Tensor]) -> list[Tensor]:
            seen, (total, lower) = probe + inverse @ state[0] @ inverse, (torch.zeros_like(part) for part in state)
            for piece in pieces:
                total += piece.weight * self.share * piece.sandwich(seen)
                if not isinstance(piece, _Narrow | _Wide):  # linked to nothing
                    continue
                damped = piece.below.damped
                total -= kept * ((self._weighed(state[1], damped)).flatten(0, 2).T @ damped.flatten(0, 2))
                flow, order = (damped @ seen).flatten(2), piece.below.order
                lower += self._diagonal(self._weighed(state[1], order).mT, order) * scale
                lower -= self._diagonal(flow, damped.flatten(2)) * scale / self.linked.outputs
            return [symmetric(total), lower]

        begin = pull([torch.zeros_like(probe), self._nothing()])
        units = [1 / (float(part.norm()) or 1.0) for part in begin]
        (psi, below), _ = iterate(pull, begin, units, tolerance=tolerance)
        return psi, below

    def _weighed(self, weights: Float64[Tensor, "l g g"], rows: Tensor) -> Tensor:
        """``weights`` times what is below, (m, l g s, ...)."""
        parts = rows.reshape(len(rows), self.lower[0], self.lower[1], -1)
        return (weights @ parts).view(rows.shape)

    def _evaluate(
        self, pieces: list[_Piece], inverse: Tensor, alpha: Tensor, psi: Tensor, below: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean predictions (T, C) and variances (T,)."""
        seen = alpha @ alpha.T + inverse @ psi @ inverse
        cross, noise, own = (torch.zeros_like(x) for x in (self.limit.cross, self.limit.cross, self.limit.own))
        for piece in pieces:
            parts = piece.evaluated(seen)
            cross += piece.weight * parts[0]
            noise += piece.weight * self.share * parts[1]
            own += piece.weight * self.share * parts[2]
            if isinstance(piece, _Narrow | _Wide):
                reached = piece.below.damped_eval
                weighed = self._weighed(below, reached).flatten(0, 2) * self.share / self.examples
                noise -= weighed.T @ piece.below.damped.flatten(0, 2)
                own -= (weighed * reached.flatten(0, 2)).sum(0)
        return predictions(self.kernel.fixed, cross, noise, own, inverse, alpha, psi)


def _blocks(matrix: Float64[Tensor, "m a b"], rows: int, columns: int) -> Float64[Tensor, "m q n d p"]:
    """A view of the blocks that belong to two copies of the points each."""
    examples, height, width = matrix.shape
    return matrix.view(examples, rows, height // rows, columns, width // columns)


def _trace(matrix: Float64[Tensor, "m q n q p"]) -> Float64[Tensor, "n p"]:
    """Summed over examples and copies."""
    return matrix.diagonal(dim1=1, dim2=3).sum((0, 3))


def _damping(below: Float64[Tensor, "l g g"]) -> Tensor:
    """H^-1."""
    return (below + below.mT) / 2 + torch.eye(below.shape[1], dtype=torch.float64)
