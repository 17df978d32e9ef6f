"""Steps of the layered recursion that torch would make in many passes, compiled by Numba for the CPU.

The Hermite series of tanh, and means over windows. Axes: s pixels; n, m inputs; j Hermite degrees. All arrays float64
and contiguous.
"""

from typing import Any

import numpy as np

from ridgescope.models.kernels.infinite.compiled import compiled

NEGLIGIBLE = 1e-18  # terms of the series that no sum of a hundred of them brings to rounding
CHUNK = 64  # inputs whose largest cosine says which terms these are

Array = np.ndarray[Any, np.dtype[np.float64]]


@compiled
def hermite(k: Array, tangent: Array, left: Array, right: Array) -> None:
    """``k <- D(k)``, ``tangent <- D'(k) tangent`` for arrays (s, n, m), with square roots of variances
    and coefficients, (1 + j, s, n) and (1 + j, s, m)."""
    columns = k.shape[2]
    square, value, slope = np.empty(CHUNK), np.empty(CHUNK), np.empty(CHUNK)
    most = np.empty(left.shape[0])
    for s in range(k.shape[0]):
        for j in range(left.shape[0]):
            most[j] = np.abs(right[j, s]).max()
        for p in range(k.shape[1]):
            for first in range(0, columns, CHUNK):
                here, passed = k[s, p][first : first + CHUNK], tangent[s, p][first : first + CHUNK]
                norms = right[0, s][first : first + CHUNK]
                largest = 0.0
                for q in range(here.shape[0]):
                    norm = max(left[0, s, p] * norms[q], 1e-300)
                    cosine = min(max(here[q] / norm, -1.0), 1.0)
                    here[q], square[q], value[q], slope[q] = cosine, cosine * cosine, 0.0, 0.0
                    largest = max(largest, square[q])
                degrees, power = 1, 1.0
                for j in range(1, left.shape[0]):
                    if abs(left[j, s, p]) * most[j] * power * j >= NEGLIGIBLE:
                        degrees = j
                    power *= largest
                for j in range(degrees, 0, -1):
                    coefficient, others = left[j, s, p], right[j, s][first : first + CHUNK]
                    for q in range(here.shape[0]):
                        product = coefficient * others[q]
                        value[q] = value[q] * square[q] + product
                        slope[q] = slope[q] * square[q] + (2.0 * j - 1.0) * product
                for q in range(here.shape[0]):
                    here[q] *= value[q]
                    passed[q] *= slope[q] / max(left[0, s, p] * norms[q], 1e-300)


@compiled
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


def warm_up() -> None:
    """Compiles both, or reads them from Numba's cache."""
    nothing = np.empty((0, 0, 0))
    hermite(nothing, nothing, nothing, nothing)
    window_means(np.empty((1, 0, 0)), 1, 1, 1)
