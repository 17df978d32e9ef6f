"""One layer of the infinite-width recursion in one sweep over the pairs, compiled by Numba for the CPU.

`ridgescope.models.kernels.duals` says what is computed; here the same formulas are written so that the compiler puts
neighbouring pairs into the lanes of one vector: no branches, no library calls, arcsin as a rational function. Each
array is read and written once, where torch makes about twenty passes.

Axes: s pixels; n, m inputs; j Hermite degrees. All arrays float64 and contiguous.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from ridgescope.models.kernels.duals import PARALLEL

NEGLIGIBLE = 1e-18  # products of coefficients that no sum of a hundred of them brings to rounding

Array = np.ndarray[Any, np.dtype[np.float64]]


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # unwrap: a type checker may have wrapped the function at import; numpy's errors: 1/0 is inf and not a branch
    compiler = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
    compiled: Callable[..., Any] = compiler(inspect.unwrap(function))
    return compiled


@_compile
def _arcsin_ratio(z):  # type: ignore[no-untyped-def]
    """``(arcsin(x) / x - 1)`` at ``z = x^2 <= 1/4``; fdlibm, e_asin.c: below one ulp."""
    above = 7.91534994289814532176e-04 + z * 3.47933107596021167570e-05
    above = -4.00555345006794114027e-02 + z * above
    above = 2.01212532134862925881e-01 + z * above
    above = 1.66666666666666657415e-01 + z * (-3.25565818622400915405e-01 + z * above)
    below = -6.88283971605453293030e-01 + z * 7.70381505559019352791e-02
    below = 1.0 + z * (-2.40339491173441421878e00 + z * (2.02094576023350569471e00 + z * below))
    return z * above / below


@_compile
def _arccos(x):  # type: ignore[no-untyped-def]
    """For ``-1 <= x <= 1``: ``pi/2 - arcsin(x)`` for small x, twice the arcsin of the half angle's sine otherwise."""
    size = abs(x)
    small = size <= 0.5
    z = size * size if small else 0.5 * (1.0 - size)
    root = size if small else math.sqrt(z)
    angle = root + root * _arcsin_ratio(z)
    acute = 0.5 * math.pi - angle if small else 2.0 * angle
    return math.pi - acute if x < 0 else acute


@_compile
def relu(k: Array, tangent: Array, norm1: Array, norm2: Array) -> None:
    """``k <- D(k)``, ``tangent <- D'(k) tangent`` for arrays (s, n, m), norms (1, s, n) and (1, s, m)."""
    for s in range(k.shape[0]):
        for p in range(k.shape[1]):
            for q in range(k.shape[2]):
                norm = norm1[0, s, p] * norm2[0, s, q]
                cosine = min(max(k[s, p, q] / norm, -1.0), 1.0)
                square = 1.0 - cosine * cosine
                parallel = square < PARALLEL
                sine = 0.0 if parallel else math.sqrt(square)
                exact = (0.0 if cosine > 0 else math.pi) if parallel else _arccos(cosine)
                derivative = (math.pi - exact) * (0.5 / math.pi)
                k[s, p, q] = norm * (cosine * derivative + sine * (0.5 / math.pi))
                tangent[s, p, q] *= derivative


@_compile
def erf(k: Array, tangent: Array, volume1: Array, volume2: Array) -> None:
    """As `relu`, with ``1 + 2 q`` in place of norms."""
    for s in range(k.shape[0]):
        for p in range(k.shape[1]):
            for q in range(k.shape[2]):
                volume = volume1[0, s, p] * volume2[0, s, q]
                double = 2.0 * k[s, p, q]
                angle = 0.5 * math.pi - _arccos(double / math.sqrt(volume))
                k[s, p, q] = angle * (2.0 / math.pi)
                tangent[s, p, q] *= (4.0 / math.pi) / math.sqrt(volume - double * double)


@_compile
def gelu(k: Array, tangent: Array, q1: Array, q2: Array) -> None:
    """As `relu`, with variances; ``arctan(k / r) = arcsin(k / sqrt(volume))``."""
    for s in range(k.shape[0]):
        for p in range(k.shape[1]):
            for q in range(k.shape[2]):
                one, two, here = q1[0, s, p], q2[0, s, q], k[s, p, q]
                volume, product = (1.0 + one) * (1.0 + two), one * two
                r2 = volume - here * here
                r = math.sqrt(r2)
                angle = 0.5 * math.pi - _arccos(here / math.sqrt(volume))
                dual = (here * here + product * r2) / (volume * r) + here * angle
                slope = here / r * (1.0 / r2 + (1.0 - product) / volume + 1.0)
                k[s, p, q] = 0.25 * here + dual * (0.5 / math.pi)
                tangent[s, p, q] *= 0.25 + (slope + angle) * (0.5 / math.pi)


@_compile
def hermite(k: Array, tangent: Array, left: Array, right: Array) -> None:
    """As `relu`, with square roots of variances and coefficients, (1 + j, s, n) and (1 + j, s, m)."""
    columns = k.shape[2]
    square, value, slope = np.empty(columns), np.empty(columns), np.empty(columns)
    most = np.empty(left.shape[0])
    for s in range(k.shape[0]):
        for j in range(left.shape[0]):
            most[j] = np.abs(right[j, s]).max()
        for p in range(k.shape[1]):
            degrees = left.shape[0] - 1
            while degrees > 1 and abs(left[degrees, s, p]) * most[degrees] * degrees < NEGLIGIBLE:
                degrees -= 1
            for q in range(columns):
                norm = max(left[0, s, p] * right[0, s, q], 1e-300)
                cosine = min(max(k[s, p, q] / norm, -1.0), 1.0)
                k[s, p, q], square[q], value[q], slope[q] = cosine, cosine * cosine, 0.0, 0.0
            for j in range(degrees, 0, -1):
                coefficient = left[j, s, p]
                for q in range(columns):
                    product = coefficient * right[j, s, q]
                    value[q] = value[q] * square[q] + product
                    slope[q] = slope[q] * square[q] + (2.0 * j - 1.0) * product
            for q in range(columns):
                k[s, p, q] *= value[q]
                tangent[s, p, q] *= slope[q] / max(left[0, s, p] * right[0, s, q], 1e-300)


@_compile
def window_means(source: Array, rows: int, columns: int, stride: int) -> Array:
    """Mean over 3x3 windows of images (s, n, m) of ``rows x columns`` pixels with zeros around them."""
    out_rows, out_columns = (rows - 1) // stride + 1, (columns - 1) // stride + 1
    pairs = source.shape[1] * source.shape[2]
    flat = source.reshape(rows, columns, pairs)
    total = np.zeros((out_rows * out_columns, source.shape[1], source.shape[2]))
    target = total.reshape(out_rows, out_columns, pairs)
    for u in range(out_rows):
        for v in range(out_columns):
            for i in range(max(0, stride * u - 1), min(rows, stride * u + 2)):
                for j in range(max(0, stride * v - 1), min(columns, stride * v + 2)):
                    for r in range(pairs):
                        target[u, v, r] += flat[i, j, r]
            for r in range(pairs):
                target[u, v, r] *= 1.0 / 9.0
    return total


ACTIVATIONS: dict[str, Callable[[Array, Array, Array, Array], None]] = {
    "relu": relu,
    "erf": erf,
    "gelu": gelu,
    "tanh": hermite,
}
