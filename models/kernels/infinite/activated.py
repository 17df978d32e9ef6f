"""A Gaussian's covariance behind an activation, for a row of pairs at once, compiled by Numba for the CPU.

`ridgescope.models.kernels.duals` says what is computed; here the same formulas are written so that the compiler puts
neighbouring pairs into the lanes of one vector: no branches, no library calls, no argument that needs division.

With cosine ``c`` and ``z = (1 - |c|) / 2`` the acute angle is ``2 arcsin(sqrt(z)) = 2 sqrt(z) A(z)`` and its sine
``2 sqrt(z) sqrt(1 - z)``, exact to rounding for nearly parallel pairs too.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ridgescope.models.kernels.duals import PARALLEL
from ridgescope.models.kernels.infinite.compiled import compiled

Row = np.ndarray[Any, np.dtype[np.float64]]


@compiled
def _arcsin_ratio(z):  # type: ignore[no-untyped-def]
    """``arcsin(sqrt(z)) / sqrt(z)`` for ``0 <= z <= 1/2`` to 3e-17: the polynomial of degree 18 at Chebyshev nodes.

    Even and odd powers apart: two short chains run side by side where one long one would wait for itself.
    """
    y = z * z
    even = 5.7579408313146985 + y * 0.8892904367638688
    odd = -6.229299875397985 + y * -3.278933156739812
    even = 4.6420689099888435 + y * even
    odd = -2.4908808126226116 + y * odd
    even = 1.0082016650534187 + y * even
    odd = -0.2968705430689824 + y * odd
    even = 0.07871611357002127 + y * even
    odd = -0.002601537848299688 + y * odd
    even = 0.013191002571753903 + y * even
    odd = 0.01380344589589198 + y * odd
    even = 0.017364281439103527 + y * even
    odd = 0.022371584779320355 + y * odd
    even = 0.030381963396751827 + y * even
    odd = 0.044642856762615 + y * odd
    even = 0.07500000000401816 + y * even
    odd = 0.16666666666664987 + y * odd
    return 1.0 + (z * odd + y * even)


@compiled
def relu(k: Row, tangent: Row, norm1: Row, norm2: Row) -> None:
    """``k <- D(k)``, ``tangent <- D'(k) tangent``, entry by entry, with norms ``sqrt(q)`` of both sides."""
    for i in range(k.shape[0]):
        norm = norm1[i] * norm2[i]
        covariance = k[i]
        cosine = covariance / norm
        z = 0.5 - 0.5 * abs(cosine)
        z = z if z > 0.25 * PARALLEL else 0.0
        root = math.sqrt(z)
        share = root * _arcsin_ratio(z) * (1.0 / math.pi)  # of the full angle 2 pi
        derivative = 0.5 - share if cosine > 0.0 else share
        k[i] = covariance * derivative + norm * (root * math.sqrt(1.0 - z) * (1.0 / math.pi))
        tangent[i] *= derivative


@compiled
def erf(k: Row, tangent: Row, scale1: Row, scale2: Row) -> None:
    """As `relu`, with scales ``1 / sqrt(1 + 2 q)``."""
    for i in range(k.shape[0]):
        scale = scale1[i] * scale2[i]
        cosine = 2.0 * k[i] * scale
        z = 0.5 - 0.5 * abs(cosine)
        root = math.sqrt(z)
        value = 1.0 - root * _arcsin_ratio(z) * (4.0 / math.pi)
        k[i] = value if cosine > 0.0 else -value
        tangent[i] *= (2.0 / math.pi) * scale / (root * math.sqrt(1.0 - z))


@compiled
def gelu(k: Row, tangent: Row, variance1: Row, variance2: Row) -> None:
    """As `relu`, with variances; ``arctan(k / r)`` is the arcsin of ``c = k / sqrt(volume)``."""
    for i in range(k.shape[0]):
        one, two, here = variance1[i], variance2[i], k[i]
        product = one * two
        inverse = 1.0 / math.sqrt((1.0 + one) * (1.0 + two))
        cosine = here * inverse
        z = 0.5 - 0.5 * abs(cosine)
        root = math.sqrt(z)
        acute = 0.5 * math.pi - 2.0 * root * _arcsin_ratio(z)
        angle = acute if cosine > 0.0 else -acute
        sine = 2.0 * root * math.sqrt(1.0 - z)
        over = 1.0 / sine
        dual = (cosine * cosine + product * sine * sine) * inverse * over + here * angle
        slope = cosine * over * (inverse * inverse * (over * over + 1.0 - product) + 1.0)
        k[i] = 0.25 * here + dual * (0.5 / math.pi)
        tangent[i] *= 0.25 + (slope + angle) * (0.5 / math.pi)


RELU, ERF, GELU = range(3)


@compiled
def activate(activation: int, k: Row, tangent: Row, left: Row, right: Row) -> None:
    """One of the above; left and right as `PREPARED` makes them of variances."""
    if activation == RELU:
        relu(k, tangent, left, right)
    elif activation == ERF:
        erf(k, tangent, left, right)
    else:
        gelu(k, tangent, left, right)


CODES = {"relu": RELU, "erf": ERF, "gelu": GELU}
PREPARED: dict[str, Callable[[Tensor], Tensor]] = {
    # a dead pixel has q = k = 0; the floor makes its cosine 0 instead of NaN
    "relu": lambda q: q.clamp_min(torch.finfo(q.dtype).tiny).sqrt(),
    "erf": lambda q: (1 + 2 * q).rsqrt(),
    "gelu": lambda q: q,
}
