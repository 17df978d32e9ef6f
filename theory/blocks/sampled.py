"""Blocks of any shape, by example: the law of `ridgescope.theory.blocks.law` without a block's concentration.

    G = (A + E[R])^-1,     R = F (1 + F^T G F/N)^-1 F^T

F (P, r) are the features of one block, and the mean is over examples of a block. `ridgescope.theory.blocks.law`
replaces F^T G F/N by its mean; here it stays what it is for each example. The map G -> (A + E[R])^-1 has the two
properties that give one positive solution, for any examples and at every width. With H = alpha alpha^T + G Psi G,

    Psi = E[R H R]/N,     E (y - f(x))^2 = (y - k(x)^T alpha)^2 + u(x)^T Psi u(x),     u(x) = delta_x - G k(x)

Derivation: docs/theory/finite_width_conv.md. Letters: P training points, T evaluation points, M examples, r features of
a block. Features are stored as rows, F^T, so that products with (P, P) matrices are single ones.
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
from ridgescope.theory.blocks.law import (
    BlockPrediction,
    assembled,
    checked_problem,
    checked_width,
    require_distinct,
)
from ridgescope.theory.blocks.pairs import FLOOR, symmetric

CHUNK = 2**23  # numbers of F^T handled at once: 64 MB
TOLERANCE = 1e-11  # relative change in one iteration, of the kernel and of Psi


@dataclass(frozen=True)
class SampledFamily:
    """M equally likely examples of one kind of block, ``features`` (M, r, q, P) and ``features_eval`` (M, r, q, T).

    q copies of the points share the block's r weights, as the q outputs of a network do: a block counts as the mean of
    F F^T over copies, and its Gram matrix F^T G F as their sum.
    """

    features: Float64[Tensor, "m r q p"]
    features_eval: Float64[Tensor, "m r q t"]

    def mean(self) -> PointKernel:
        """The mean of F F^T over examples and copies."""
        examples, _, copies, _ = self.features.shape
        rows, others = self.features.flatten(0, 2), self.features_eval.flatten(0, 2)
        total = PointKernel(symmetric(rows.T @ rows), others.T @ rows, others.square().sum(0))
        return total.scaled(1 / (examples * copies))


@dataclass(frozen=True)
class SampledKernel:
    """The random kernel ``fixed + (1/N) sum_n sum_b F_bn F_bn^T``, families b by example."""

    families: Sequence[SampledFamily]
    fixed: PointKernel | None = None

    def mean(self) -> PointKernel:
        total = self.families[0].mean()
        for family in self.families[1:]:
            total = total.plus(family.mean())
        return total

    def limit(self) -> PointKernel:
        """The kernel at infinite width."""
        return self.mean() if self.fixed is None else self.mean().plus(self.fixed)

    def matched(self, limit: PointKernel) -> "SampledKernel":
        """Examples whose `limit` is exactly this: on training points and of evaluation points with them.

        ``F -> L L_M^-1 F`` with the Cholesky factors of both kernels; an evaluation point then gets the combination of
        the training points' features that mends its kernel with them. So infinite width is exact, and the error of M
        examples is left in the effect of the width alone. Raises ``ValueError`` for equal training points and where
        the examples hold fewer than twice as many features as there are training points.
        """
        require_distinct(limit.train)
        held, size = sum(family.features.shape[:3].numel() for family in self.families), len(limit.train)
        if held < 2 * size:
            raise ValueError(f"the examples hold {held} features for {size} training points; draw at least {2 * size}")
        wanted, mine = limit if self.fixed is None else limit.plus(self.fixed.scaled(-1.0)), self.mean()
        # equal floors: directions that both kernels lack, of smooth activations, stay as they are
        floor = FLOOR * wanted.train.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        root, goal = (torch.linalg.cholesky(k.train + floor) for k in (mine, wanted))
        move = torch.linalg.solve_triangular(root, goal, upper=False, left=False)  # L L_M^-1
        mend = torch.cholesky_solve((wanted.cross - mine.cross @ move.T).T, goal)
        moved = []
        for family in self.families:
            features = family.features @ move.T
            moved.append(SampledFamily(features, family.features_eval + features @ mend))
        return SampledKernel(moved, self.fixed)


def sampled_law(
    kernel: SampledKernel,
    targets: Float64[Tensor, "p c"],
    eval_targets: Float64[Tensor, "t c"] | None = None,
    *,
    width: Number,
    ridge: Number,
    weights: Float64[Tensor, " p"] | None = None,
    start: list[Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> BlockPrediction:
    """Predict regression with ridge ``ridge`` on ``kernel`` with ``width`` blocks of each family.

    ``weights``: w of the loss (1/P) sum w_i e_i^2, default 1. ``start``: the ``orders`` of a neighbouring (width,
    ridge). ``width = inf`` is `SampledKernel.limit`. Fields as in `BlockPrediction`; results carry no gradient.
    ``tolerance``: relative change in the last iteration, of the kernel and of Psi.

    Cost: 2 M r q P (P + r) multiply-adds per iteration, 10-20 iterations for the fixed point and, at twice that, for
    each of two linear responses. Memory: twice the features.

    Raises ``ValueError`` for width < 1, ridge <= 0 and equal training points; ``RuntimeError`` where an iteration does
    not converge.
    """
    problem = _Problem(kernel, targets, width, ridge, weights, tolerance)
    return problem.solve(start[0] if start else None).prediction(problem.checked, problem.limit.train, eval_targets)


@dataclass(frozen=True)
class Averages:
    """What a prediction is made of; all but ``spread`` and ``variance`` are linear in the resolvent."""

    inverse: Float64[Tensor, "p p"]
    alpha: Float64[Tensor, "p c"]
    spread: Float64[Tensor, " p"]
    slope: Float64[Tensor, ""]
    predictor: Float64[Tensor, "t c"]
    variance: Float64[Tensor, " t"]
    orders: list[Tensor]
    iterations: int

    def prediction(
        self,
        problem: tuple[Tensor, Tensor, Tensor],
        limit: Float64[Tensor, "p p"],
        eval_targets: Float64[Tensor, "t c"] | None,
    ) -> BlockPrediction:
        """``problem``: what `checked_problem` returns; ``limit``: the kernel at infinite width, on training points."""
        _, weights, ridge = problem
        return assembled(
            self.inverse,
            self.alpha,
            self.spread,
            self.slope,
            self.predictor,
            self.variance,
            limit=limit,
            weights=weights,
            ridge=ridge,
            eval_targets=eval_targets,
            orders=self.orders,
            iterations=self.iterations,
        )


class _Problem:
    def __init__(
        self,
        kernel: SampledKernel,
        targets: Tensor,
        width: Number,
        ridge: Number,
        weights: Tensor | None,
        tolerance: float,
    ) -> None:
        self.tolerance = tolerance
        self.kernel, self.share = kernel, 1 / float(checked_width(width))
        self.size = kernel.families[0].features.shape[-1]
        self.checked = checked_problem(targets, weights, ridge, self.size)
        self.targets, self.weights, self.ridge = self.checked
        self.limit = kernel.limit()
        require_distinct(self.limit.train)
        self.base = torch.diag(self.size * self.ridge / self.weights)
        self.begin = self.kernel.limit().train
        if kernel.fixed is not None:
            self.base, self.begin = self.base + kernel.fixed.train, self.begin - kernel.fixed.train

    @torch.no_grad()
    def solve(self, start: Tensor | None) -> Averages:
        state, iterations = iterate(
            lambda s: [self.shrunk(self.resolvent(s[0]))],
            [self.begin if start is None else start],
            [1 / float(self.begin.norm())],
            lambda s: int(torch.linalg.cholesky_ex(self.base + symmetric(s[0]))[1]) == 0,
            tolerance=self.tolerance,
        )
        inverse, weights = self.resolvent(state[0]), self.weights
        alpha = inverse @ self.targets
        source = inverse @ (inverse / weights[:, None])  # G W^-1 G
        roots = list(self.roots(inverse))
        psi, slope = (self.response(roots, inverse, probe) for probe in (alpha @ alpha.T, source))
        return Averages(
            inverse,
            alpha,
            ((inverse @ psi) * inverse).sum(1),
            (source.diagonal() / weights).sum() + (source * slope).sum(),
            *self.evaluate(inverse, alpha, psi),
            state,
            iterations,
        )

    def resolvent(self, kernel: Tensor) -> Tensor:
        return mean_inverse([], self.base + kernel, [])

    def roots(self, inverse: Tensor, evaluation: bool = False) -> "Iterator[Root]":
        return roots(self.kernel.families, inverse, self.share, evaluation=evaluation)

    def shrunk(self, inverse: Tensor) -> Tensor:
        """E[R]."""
        total = torch.zeros_like(inverse)
        for root in self.roots(inverse):
            total += root.weight * root.mean()
        return total

    def response(self, roots: "list[Root]", inverse: Tensor, probe: Tensor) -> Tensor:
        """``Psi = E[R (probe + G Psi G) R]/N``."""

        def pull(state: list[Tensor]) -> list[Tensor]:
            seen, total = probe + inverse @ state[0] @ inverse, torch.zeros_like(probe)
            for root in roots:
                total += root.weight * self.share * root.sandwich(seen)
            return [symmetric(total)]

        begin = pull([torch.zeros_like(probe)])
        scale = float(begin[0].norm())
        return iterate(pull, begin, [1 / scale], tolerance=self.tolerance)[0][0] if scale > 0 else begin[0]

    def evaluate(self, inverse: Tensor, alpha: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Mean predictions (T, C) and variances (T,)."""
        seen = alpha @ alpha.T + inverse @ psi @ inverse
        cross, noise, own = (torch.zeros_like(x) for x in (self.limit.cross, self.limit.cross, self.limit.own))
        for root in self.roots(inverse, evaluation=True):
            parts = root.evaluated(seen)
            cross += root.weight * parts[0]
            noise += root.weight * self.share * parts[1]
            own += root.weight * self.share * parts[2]
        return predictions(self.kernel.fixed, cross, noise, own, inverse, alpha, psi)


@dataclass(frozen=True)
class Root:
    """R of some examples as rows of a root, ``root`` (m, r, q, P) and ``reach`` (m, r, q, T) on evaluation points; an
    example and copy counts with ``weight``."""

    weight: float
    root: Tensor
    reach: Tensor

    def mean(self) -> Tensor:
        rows = self.root.flatten(0, 2)
        return rows.T @ rows

    def sandwich(self, seen: Tensor) -> Tensor:
        """R seen R, summed over examples and copies."""
        answer = within(self.root, seen) @ self.root.flatten(2)
        return self.root.flatten(0, 2).T @ answer.reshape(-1, len(seen))

    def evaluated(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R and R seen R between evaluation and training points, and the latter at evaluation points."""
        rows, others = self.root.flatten(0, 2), self.reach.flatten(0, 2)
        answer = (within(self.root, seen) @ self.reach.flatten(2)).reshape(others.shape)
        return others.T @ rows, answer.T @ rows, (answer * others).sum(0)


def roots(families: Sequence[SampledFamily], inverse: Tensor, share: float, *, evaluation: bool) -> Iterator[Root]:
    """Some examples at a time; ``evaluation``: on evaluation points too."""
    for family in families:
        examples, rank, copies, size = family.features.shape
        piece = max(1, CHUNK // (rank * copies * size))
        parts = family.features.split(piece), family.features_eval.split(piece)
        for rows, others in zip(*parts, strict=True):
            factor = root_factor(rows, inverse, share)
            reach = forward(factor, others) if evaluation else others[..., :0]
            yield Root(1 / (examples * copies), forward(factor, rows), reach)


def root_factor(rows: Float64[Tensor, "m r q n"], inverse: Tensor, share: float) -> Tensor:
    """Cholesky factor of 1 + X^T G X/N, (m, r, r)."""
    gram = (rows @ inverse).flatten(2) @ rows.flatten(2).mT * share
    return torch.linalg.cholesky((gram + gram.mT) / 2 + torch.eye(rows.shape[1], dtype=torch.float64))


def predictions(
    fixed: PointKernel | None, cross: Tensor, noise: Tensor, own: Tensor, inverse: Tensor, alpha: Tensor, psi: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean predictions (T, C) and variances (T,) from E[R] and E[R seen R]/N of the random blocks."""
    if fixed is not None:
        cross = cross + fixed.cross
    shadow = cross @ inverse  # rows k(x)^T G
    variance = own - 2 * (shadow * noise).sum(1) + ((shadow @ psi) * shadow).sum(1)
    return cross @ alpha, variance


def forward(factor: Tensor, rows: Tensor) -> Tensor:
    """``factor^-1 rows`` for (m, r, r) and (m, r, q, n)."""
    return torch.linalg.solve_triangular(factor, rows.flatten(2), upper=False).view(rows.shape)


def within(root: Tensor, matrix: Tensor) -> Tensor:
    """``X^T matrix X`` of each example, summed over copies: (m, r, r)."""
    return (root @ matrix).flatten(2) @ root.flatten(2).mT
