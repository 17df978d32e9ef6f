"""Kernel ridge regression from products ``A v`` alone: conjugate gradients with a Nystrom preconditioner.

Symbols: A = K/P positive semidefinite (n, n), lam ridge; U, l eigenvectors (n, r) and eigenvalues of its Nystrom
approximation of rank r, descending.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.lanczos import Apply


@dataclass(frozen=True)
class Nystrom:
    """``A ~ U diag(l) U^T``."""

    vectors: Float64[Tensor, "n r"]
    eigenvalues: Float64[Tensor, " r"]

    def precondition(self, v: Float64[Tensor, "n b"], ridge: Number) -> Float64[Tensor, "n b"]:
        """``P^-1 v`` with P equal to ``A + ridge`` on U, up to a factor, and to the identity elsewhere."""
        inside = self.vectors.T @ v
        factor = (self.eigenvalues[-1] + ridge) / (self.eigenvalues + ridge) - 1
        return v + self.vectors @ (factor[:, None] * inside)


def nystrom(apply: Apply, size: int, rank: int, *, generator: torch.Generator) -> Nystrom:
    """The Nystrom approximation from the products of A with ``rank`` random vectors.

    Source: Frangella, Tropp and Udell 2021, arXiv:2110.02820, algorithm 2.1. Cost: ``rank`` products and 4 n r^2
    operations; memory 3 n r numbers. Raises ``ValueError`` unless ``1 <= rank <= size``.
    """
    if not 1 <= rank <= size:
        raise ValueError(f"rank={rank} must lie in [1, {size}]; a preconditioner of a few hundred is usual")
    test = torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64, generator=generator))[0]
    sketch = apply(test)
    shift = math.sqrt(size) * torch.finfo(torch.float64).eps * float(sketch.norm())
    sketch = sketch + shift * test
    core = test.T @ sketch
    factor = torch.linalg.cholesky((core + core.T) / 2)
    rows = torch.linalg.solve_triangular(factor, sketch.T, upper=False)
    vectors, singular, _ = torch.linalg.svd(rows.T, full_matrices=False)
    return Nystrom(vectors, (singular**2 - shift).clamp_min(0))


@dataclass(frozen=True)
class IterativeSolution:
    """``solution`` (n, c) of ``(A + lam) x = b``; ``residual`` is the largest ``|b - (A + lam) x| / |b|``."""

    solution: Float64[Tensor, "n c"]
    residual: float
    steps: int


def conjugate_gradients(
    apply: Apply,
    targets: Float64[Tensor, "n c"],
    *,
    ridge: Number,
    preconditioner: Nystrom | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 1000,
) -> IterativeSolution:
    """``(A + ridge)^-1 targets``, each column by its own recursion, all in one product per step.

    Without a preconditioner about ``sqrt((e_1 + ridge)/ridge) log(1/tolerance)`` steps; with one, e_1 is the first
    eigenvalue that it lacks. Memory 5 n c numbers. Source: Saad 2003, Iterative Methods for Sparse Linear Systems,
    algorithm 9.1.

    Raises ``ValueError`` for a ridge that is not positive, and ``RuntimeError`` where max_steps do not reach tolerance.
    """
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge={ridge:g} must be positive; a ridgeless system has no condition number to rely on")
    size = targets.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    solution = torch.zeros_like(targets)
    residual = targets.clone()
    direction = torch.zeros_like(targets)
    old = torch.ones_like(size)
    for step in range(max_steps + 1):
        worst = float((residual.norm(dim=0) / size).max())
        if worst <= tolerance:
            return IterativeSolution(solution, worst, step)
        if step == max_steps:
            break
        ahead = residual if preconditioner is None else preconditioner.precondition(residual, ridge)
        new = (residual * ahead).sum(0)
        direction = ahead + (new / old if step else torch.zeros_like(new)) * direction
        product = apply(direction) + ridge * direction
        # a column that is solved exactly has no direction left
        length = new / (direction * product).sum(0).clamp_min(torch.finfo(torch.float64).tiny)
        solution += length * direction
        residual -= length * product
        old = new.clamp_min(torch.finfo(torch.float64).tiny)
    raise RuntimeError(
        f"conjugate gradients stand at a residual of {worst:.1e} after {max_steps} steps, tolerance={tolerance:g}; "
        "raise max_steps, the ridge or the preconditioner's rank"
    )
