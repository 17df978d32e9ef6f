"""The resolvents ``R = (K/P + lam)^-1`` of one kernel at several ridges, from as few factorisations as serve.

One eigendecomposition serves every ridge; a Cholesky factor with its inverse serves one, in a fifth to an eighth of the
time (n >= 500; benchmarks/kernel_spectrum.py), and its products are as accurate.

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

BREAK_EVEN = 8  # ridges from which one eigendecomposition costs less than Cholesky factors with their inverses


@dataclass(frozen=True)
class Resolvent:
    """``R`` at one ridge, held as a matrix or as eigenvectors (n, n) with the weights 1/(e + lam)."""

    ridge: float
    certificate: Certificate
    _matrix: Float64[Tensor, "n n"]
    _weights: Float64[Tensor, " n"] | None = None

    def times(self, targets: Float64[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
        """``R targets``."""
        if self._weights is None:
            return self._matrix @ targets
        return self._matrix @ (self._weights[:, None] * (self._matrix.T @ targets))

    def blocks(self, outputs: int = 1) -> Float64[Tensor, "samples c c"]:
        """The C x C diagonal block of each sample; its inverse gives the left-out residual."""
        if self._weights is None:
            square = self._matrix.unflatten(0, (outputs, -1)).unflatten(2, (outputs, -1))
            return square.diagonal(dim1=1, dim2=3).permute(2, 0, 1)
        rows = self._matrix.unflatten(0, (outputs, -1)).transpose(0, 1)  # (samples, c, n)
        return (rows * self._weights) @ rows.transpose(1, 2)

    def mean(self) -> float:
        """``tr R / n``."""
        return float((self._matrix.diagonal() if self._weights is None else self._weights).mean())


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
            extremes = math.nan, largest_eigenvalue(matrix)
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
        inverse = torch.cholesky_inverse(factor)
        found = replace(self._known, smallest=1 / largest_eigenvalue(inverse) - ridge)
        _require(found, ridge)
        return Resolvent(float(ridge), found, inverse)


def _require(found: Certificate, ridge: Number) -> None:
    if reason := found.refusal(ridge):
        raise ValueError(f"the kernel cannot carry ridge={ridge:g}: {reason}")
