"""Whether a kernel matrix can carry a ridge, at the precision that it was computed in.

Symbols: A = K/P symmetric matrix, e its eigenvalues, lam ridge, eps rounding unit of the precision of K.

Rounding leaves every eigenvalue known only to within a *floor* of ``8 eps e_max``: the spectral norm of the error was
measured at up to 2.7 eps e_max, for tangent kernels of 50 to 2000 rows in single precision. Regression inverts
``A + lam``, so its relative error is the floor over the least eigenvalue of that, and a kernel carries a ridge where
this is below `ACCURACY`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number

FLOOR = 8  # units of eps e_max
ACCURACY = 1e-2  # of the resolvent where it is largest: a fifth of the tolerance of a verdict
_PRECISIONS = (torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Certificate:
    """What is known of a kernel matrix A before it is inverted, in units of A.

    ``asymmetry`` max |A - A^T| over the largest entry; ``smallest`` and ``largest`` eigenvalue; ``eps`` of the
    precision that the kernel was computed in.
    """

    size: int
    asymmetry: float
    smallest: float
    largest: float
    eps: float

    @property
    def floor(self) -> float:
        """Eigenvalues are known to within this."""
        return FLOOR * self.eps * self.largest

    @property
    def negativity(self) -> float:
        """The most negative eigenvalue in units of the floor; 0 where there is none. Above 1 it is no rounding."""
        return max(-self.smallest, 0.0) / self.floor if self.floor > 0 else math.inf

    def condition(self, ridge: Number = 0.0) -> float:
        """Largest over smallest eigenvalue of ``A + ridge``; infinite where the smallest is within the floor."""
        least = self.smallest + ridge
        return (self.largest + ridge) / least if least > self.floor else math.inf

    def required_eps(self, ridge: Number) -> float:
        """The rounding unit at which this kernel carries the ridge; 0 where none does."""
        return ACCURACY * (max(self.smallest, 0.0) + ridge) / (FLOOR * self.largest) if self.largest > 0 else 0.0

    def refusal(self, ridge: Number) -> str | None:
        """Why the kernel cannot carry the ridge, in one line; None where it can."""
        if not all(map(math.isfinite, (self.asymmetry, self.smallest, self.largest))):
            return "it holds NaN or infinity"
        if self.asymmetry > FLOOR * self.eps * self.size:
            return f"it is not symmetric: entries differ by {self.asymmetry:.1e} of the largest"
        if self.negativity > 1:
            return f"its eigenvalue {self.smallest:.1e} lies below the rounding floor -{self.floor:.1e}"
        # a smallest eigenvalue within the floor may be zero
        least = (self.smallest if self.smallest > self.floor else 0.0) + ridge
        if self.floor <= ACCURACY * least:
            return None
        return (
            f"{_name(self.eps)} knows its eigenvalues to within {self.floor:.1e} and the smallest with the ridge is "
            f"{least:.1e}: {_fix(self.required_eps(ridge))}raise the ridge to {self.floor / ACCURACY:.1e}"
        )


def certificate(
    matrix: Float[Tensor, "n n"],
    extremes: tuple[float, float] | None = None,
    *,
    precision: torch.dtype = torch.float64,
) -> Certificate:
    """The certificate of ``A = K/P``; ``extremes`` are its smallest and largest eigenvalue, where they are known.

    ``precision`` is that of the arithmetic which gave K. Cost: one pass over the matrix, and without extremes
    about 4/3 n^3 operations. A matrix with NaN gets a certificate that refuses every ridge.
    """
    if not bool(torch.isfinite(matrix).all()):
        return Certificate(len(matrix), math.nan, math.nan, math.nan, torch.finfo(precision).eps)
    if extremes is None:
        eigenvalues = torch.linalg.eigvalsh(matrix)
        extremes = float(eigenvalues[0]), float(eigenvalues[-1])
    return Certificate(len(matrix), asymmetry(matrix), *extremes, torch.finfo(precision).eps)


def asymmetry(matrix: Float[Tensor, "n n"]) -> float:
    """``max |A - A^T|`` over the largest entry, in tiles that stay in cache."""
    side, worst = 256, 0.0
    for start in range(0, len(matrix), side):
        rows = slice(start, start + side)
        for other in range(start, len(matrix), side):
            columns = slice(other, other + side)
            worst = max(worst, float((matrix[rows, columns] - matrix[columns, rows].T).abs().max()))
    scale = float(matrix.diagonal().abs().max())  # of a positive matrix no entry is larger
    return worst / scale if scale > 0 else worst


def _name(eps: float) -> str:
    names = {torch.finfo(dtype).eps: str(dtype).removeprefix("torch.") for dtype in _PRECISIONS}
    return names.get(eps, f"a precision of {eps:.0e}")


def _fix(eps: float) -> str:
    enough = [dtype for dtype in _PRECISIONS if torch.finfo(dtype).eps <= eps]
    return f"compute the kernel in {str(enough[0]).removeprefix('torch.')}, or " if enough else ""
