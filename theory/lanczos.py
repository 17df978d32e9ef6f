"""Traces of the resolvent and solutions with it from products ``A v`` alone, for matrices that no memory holds.

Symbols: A = K/P positive semidefinite (n, n), lam ridge, e eigenvalues of A, z probes with entries +-1 (so that
|z|^2 = n), T the tridiagonal matrix of a Lanczos run from z, theta its eigenvalues (nodes), omega the squared first
entries of its eigenvectors (weights, which sum to 1).

``z^T f(A) z`` is n times the integral of f over a measure whose Gauss quadrature is (theta, omega): for
f = 1/(x + lam) it lies below the integral, and the Gauss-Radau quadrature with a node at 0 lies above. The truncation
of the Lanczos run is therefore known, and the scatter of the probes gives the rest of the error.

Sources: Golub and Meurant 2010, Matrices, Moments and Quadrature, chapters 6 and 7; Ubaru, Chen and Saad 2017,
SIAM J. Matrix Anal. Appl. 38, 1075 (stochastic Lanczos quadrature).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from scipy.stats import t as student
from torch import Tensor

from ridgescope.theory._checks import Number

Apply = Callable[[Tensor], Tensor]  # (n, b) -> A (n, b)


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StochasticResolvent:
    """``kappa = n / tr (A + lam)^-1``, ``df1 = (P/n) tr A (A + lam)^-1``, ``df2 = (P/n) tr A^2 (A + lam)^-2``.

    ``truncation`` is the largest gap of the two quadratures of 1/(x + lam), relative; ``steps`` products were done.
    """

    kappa: Interval
    df1: Interval
    df2: Interval
    truncation: float
    steps: int


def stochastic_resolvent(
    apply: Apply,
    size: int,
    *,
    ridge: Number,
    num_samples: int | None = None,
    probes: int = 32,
    max_steps: int = 300,
    level: float = 0.95,
    generator: torch.Generator,
) -> StochasticResolvent:
    """`resolvent_estimate` without eigenvalues, each number with an interval of confidence ``level``.

    ``apply`` multiplies A = K/P with the columns of an (n, b) matrix, n = ``size``; ``num_samples`` is P, where n
    counts outputs too. Steps are added until truncation is a tenth of the probes' scatter. The relative error of df1
    is about ``sqrt(2 / (probes df1))``: where df1 is wanted to 1e-3 and a Gram fits, its eigenvalues are the better
    way.

    Cost: one product with ``probes`` vectors per step, some tens of steps (more for a ridge far below the spectrum).
    Memory: 3 n ``probes`` numbers. Raises ``ValueError`` for a ridge that is not positive, or fewer than 2 probes.
    """
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(
            f"ridge={ridge:g} must be positive: without one the trace is carried by the smallest eigenvalue"
        )
    if probes < 2:
        raise ValueError(f"probes={probes} give no error bar; pass at least 2, e.g. 32")
    samples = size if num_samples is None else num_samples
    run = LanczosRun(apply, rademacher(size, probes, generator))
    while True:
        run.advance(min(10, max_steps - run.steps))
        low, high = run.bracket(ridge)
        gap = float((high - low).mean())
        scatter = float(low.std()) / math.sqrt(probes)
        if gap <= max(0.1 * scatter, 1e-12 * float(low.mean())) or run.steps >= max_steps or run.exhausted:
            break
    nodes, weights = run.quadrature()
    learned = nodes.clamp_min(0) / (nodes.clamp_min(0) + ridge)
    df1, df2 = ((weights * f).sum(1) for f in (learned, learned**2))
    inverse = _interval(low, level, gap)
    missing = ridge * gap  # of df1/P, below the truth by at most this; df2 by at most twice, d(x^2) <= 2 dx
    return StochasticResolvent(
        kappa=Interval(1 / inverse.value, 1 / inverse.high, 1 / inverse.low),
        df1=_scaled(_interval(df1, level, missing, -missing), samples),
        df2=_scaled(_interval(df2, level, 2 * missing, -2 * missing), samples),
        truncation=gap / inverse.value,
        steps=run.steps,
    )


def _interval(values: Tensor, level: float, above: float, below: float = 0.0) -> Interval:
    """Student's interval of the mean over probes, widened by what truncation may hide."""
    count, mean = len(values), float(values.mean())
    half = float(student.ppf((1 + level) / 2, count - 1)) * float(values.std()) / math.sqrt(count)
    return Interval(mean, mean - half + min(below, 0.0), mean + half + above)


def _scaled(interval: Interval, factor: int) -> Interval:
    return Interval(factor * interval.value, factor * max(interval.low, 0.0), factor * interval.high)


def rademacher(size: int, count: int, generator: torch.Generator) -> Float64[Tensor, "size count"]:
    """Independent signs."""
    return torch.randint(2, (size, count), generator=generator).double().mul_(2).sub_(1)


class LanczosRun:
    """Lanczos recursions from the columns of ``start`` (n, b), side by side, without reorthogonalisation.

    Rounding lets converged eigenvalues appear again; their weights are shared, so that quadratures still converge
    (Greenbaum 1989). The recursion ends where every vector's residual is within rounding.
    """

    def __init__(self, apply: Apply, start: Float64[Tensor, "n b"]) -> None:
        self._apply = apply
        self._before, self._vector = torch.zeros_like(start), start / start.norm(dim=0)
        self._diagonal: list[Tensor] = []
        self._off: list[Tensor] = []
        self.exhausted = False

    @property
    def steps(self) -> int:
        return len(self._diagonal)

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            if self.exhausted:
                return
            product = self._apply(self._vector)
            if self._off:
                product = product - self._off[-1] * self._before
            diagonal = (product * self._vector).sum(0)
            product = product - diagonal * self._vector
            off = product.norm(dim=0)
            self._diagonal.append(diagonal)
            self._off.append(off)
            scale = torch.stack(self._diagonal).abs().amax(0)
            alive = off > 1e-14 * scale  # else the Krylov space is complete: go on with zeros
            off.mul_(alive)
            self._before, self._vector = self._vector, torch.where(alive, product / off.clamp_min(1e-300), 0.0)
            self.exhausted = not bool(alive.any())

    def _tridiagonal(self) -> Tensor:
        matrix = torch.diag_embed(torch.stack(self._diagonal, 1))
        off = torch.stack(self._off[:-1], 1) if self.steps > 1 else matrix.new_zeros(len(matrix), 0)
        matrix.diagonal(1, 1, 2).copy_(off)
        matrix.diagonal(-1, 1, 2).copy_(off)
        return matrix

    def quadrature(self) -> tuple[Float64[Tensor, "b steps"], Float64[Tensor, "b steps"]]:
        """Nodes and weights."""
        nodes, vectors = torch.linalg.eigh(self._tridiagonal())
        return nodes, vectors[:, 0] ** 2

    def bracket(self, ridge: Number) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        """Bounds of the integral of 1/(x + ridge) by Gauss and Gauss-Radau, the latter with a node at 0."""
        shifted = self._tridiagonal()
        shifted.diagonal(0, 1, 2).add_(ridge)
        first = shifted.new_zeros(len(shifted), self.steps)
        first[:, 0] = 1
        gauss = torch.linalg.solve(shifted, first)[:, 0]
        # Radau: T bordered by beta and beta^2 e^T T^-1 e, which puts an eigenvalue at 0; here with the ridge in T
        last = shifted.new_zeros(len(shifted), self.steps)
        last[:, -1] = 1
        plain = self._tridiagonal()
        plain.diagonal(0, 1, 2).add_(1e-14 * plain.diagonal(0, 1, 2).amax(1, keepdim=True))  # a singular T has its 0
        corner = self._off[-1] ** 2 * torch.linalg.solve(plain, last)[:, -1]
        bordered = shifted.new_zeros(len(shifted), self.steps + 1, self.steps + 1)
        bordered[:, :-1, :-1] = shifted
        bordered[:, -1, -1] = corner + ridge
        bordered[:, -1, -2] = bordered[:, -2, -1] = self._off[-1]
        unit = torch.nn.functional.pad(first, (0, 1))
        radau = torch.linalg.solve(bordered, unit)[:, 0]
        return gauss, torch.maximum(radau, gauss)


def largest_eigenvalue(apply: Apply, size: int, steps: int = 6) -> float:
    """A lower bound of the largest eigenvalue of a symmetric matrix, by ``steps`` products.

    Good to a fraction of a per cent where it stands apart from the rest, to a few per cent where it does not.
    """
    start = 1 + torch.cos(torch.arange(size, dtype=torch.float64) ** 2)[:, None]  # generic, with a mean
    run = LanczosRun(apply, start)
    run.advance(min(steps, size))
    return float(run.quadrature()[0].max())
