"""The resolvents ``R = (K/P + lam)^-1`` of one kernel at several ridges, from as few factorisations as serve.

One eigendecomposition serves every ridge; a Cholesky factor with its inverse serves one, in a fifth to an eighth of the
time (500 to 2000 rows; docs/results/kernel_engine.md), and its products are as accurate.

Symbols: A = K/P (n, n) symmetric, P samples, lam ridge; for a full C x C kernel n = C P and rows are c P + mu.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.certificate import Certificate, certificate
from ridgescope.theory.lanczos import largest_eigenvalue

BREAK_EVEN = 8  # ridges from which one eigendecomposition costs less than Cholesky factors and their inverses


@dataclass(frozen=True)
class Resolvent:
    """``R = root diag(weights) root^T`` at one ridge.

    From eigenvectors the weights are 1/(e + lam); from a Cholesky factor L the root is ``L^-T``, without weights.
    """

    ridge: float
    certificate: Certificate
    _root: Float64[Tensor, "n n"]
    _weights: Float64[Tensor, " n"] | None = None

    def times(self, targets: Float64[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
        """``R targets``."""
        inside = self._root.T @ targets
        return self._root @ (inside if self._weights is None else self._weights[:, None] * inside)

    def blocks(self, outputs: int = 1) -> Float64[Tensor, "samples c c"]:
        """The C x C diagonal block of each sample; its inverse gives the left-out residual. n^2 C operations."""
        rows = self._root.unflatten(0, (outputs, -1)).transpose(0, 1)  # (samples, c, n)
        return (rows if self._weights is None else rows * self._weights) @ rows.transpose(1, 2)

    def mean(self) -> float:
        """``tr R / n``."""
        if self._weights is None:
            return float(self._root.norm()) ** 2 / len(self._root)
        return float(self._weights.mean())


class Resolvents:
    """The resolvents of one matrix ``A = K/P``; ``at(ridge)`` gives each.

    A is decomposed once where ``num_ridges`` are many or its ``eigenvalues`` are wanted too (else None), otherwise
    factored at each ridge. Cost: 9 n^3 operations in all, or n^3 for each ridge; memory two matrices, three while
    one is factored. ``precision`` is that of the arithmetic which gave K. From a factor the smallest eigenvalue of a
    certificate is an upper bound, good to a few per cent of the ridge. Raises ``ValueError`` for NaN.
    """

    eigenvalues: Float64[Tensor, " n"] | None

    def __init__(
        self,
        matrix: Float64[Tensor, "n n"],
        *,
        num_ridges: int = 1,
        with_eigenvalues: bool = False,
        precision: torch.dtype = torch.float64,
    ) -> None:
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("the kernel holds NaN or infinity; leave out the inputs or the network that gave them")
        self.matrix, self._precision = matrix, precision
        self.eigenvalues = self._vectors = None
        if with_eigenvalues or num_ridges >= BREAK_EVEN:
            self.eigenvalues, self._vectors = torch.linalg.eigh(matrix)
            extremes = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        else:
            extremes = math.nan, largest_eigenvalue(lambda v: matrix @ v, len(matrix))
        self._known = certificate(matrix, extremes, precision=precision)

    def at(self, ridge: Number) -> Resolvent:
        """Raises ``ValueError`` where this kernel cannot carry the ridge, with the certificate's reason."""
        if self.eigenvalues is not None and self._vectors is not None:
            _require(self._known, ridge)
            return Resolvent(float(ridge), self._known, self._vectors, 1 / (self.eigenvalues + ridge))
        shifted = self.matrix.clone()
        shifted.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) != 0:  # an eigenvalue lies at or below -ridge
            _require(replace(self._known, smallest=-float(ridge)), ridge)
        root = shifted.zero_()
        _invert(factor, root.T)
        norm = largest_eigenvalue(lambda v: root @ (root.T @ v), len(root))
        found = replace(self._known, smallest=1 / norm - ridge)
        _require(found, ridge)
        return Resolvent(float(ridge), found, root)


def _invert(lower: Tensor, out: Tensor) -> None:
    """The inverse of a triangular matrix into ``out``, by halves: matrix products, up to 1.6 times LAPACK's speed."""
    n, half = len(lower), len(lower) // 2
    if n <= 128:
        out.copy_(torch.linalg.solve_triangular(lower, torch.eye(n, dtype=lower.dtype), upper=False))
        return
    _invert(lower[:half, :half], out[:half, :half])
    _invert(lower[half:, half:], out[half:, half:])
    torch.mm(out[half:, half:], lower[half:, :half] @ out[:half, :half], out=out[half:, :half]).neg_()


def _require(found: Certificate, ridge: Number) -> None:
    if reason := found.refusal(ridge):
        raise ValueError(f"the kernel cannot carry ridge={ridge:g}: {reason}")
