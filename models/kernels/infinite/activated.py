"""A Gaussian's covariance behind an activation, for a row of pairs at once, compiled by Numba for the CPU.

`ridgescope.models.kernels.duals` says what is computed; here the same formulas are written so that the compiler puts
neighbouring pairs into the lanes of one vector: no branches, no library calls, no argument that needs division.

With ``z = (1 - |c|) / 2`` the sine that belongs to a cosine c is ``2 sqrt(z (1 - z))``, exact to rounding for nearly
parallel pairs too, and every angle is the sine times a smooth function of z, or of ``c^2`` where that is smaller.
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
def _angle_ratio(u):  # type: ignore[no-untyped-def]
    """``arcsin(sqrt(u)) / sqrt(u (1 - u))`` for ``0 <= u <= 1/4`` to 6e-17: degree 13, from Chebyshev nodes.

    Even and odd powers apart: two chains run side by side where one would wait for itself.
    """
    y = u * u
    a = -1.1132861271784307
    b = 1.5537792943093436
    a = 0.03513915536852488 + y * a
    b = 0.9776555580022731 + y * b
    a = 0.29180058074110277 + y * a
    b = 0.33511256175349097 + y * b
    a = 0.3409332932493519 + y * a
    b = 0.3190722876223924 + y * b
    a = 0.40634911476368524 + y * a
    b = 0.3694112649313803 + y * b
    a = 0.5333333333163501 + y * a
    b = 0.4571428588719633 + y * b
    a = 1.0 + y * a
    b = 0.6666666666667322 + y * b
    return a + u * b


@compiled
def _arcsine(cosine, z):  # type: ignore[no-untyped-def]
    """``(turn, slope)`` with ``arcsin(cosine) = turn pi / 2 + slope sine``; turn is -1, 0 or 1."""
    sign = math.copysign(1.0, cosine)
    small = abs(cosine) < 0.5
    ratio = _angle_ratio(cosine * cosine if small else z)
    return 0.0 if small else sign, (cosine if small else -sign) * ratio


@compiled
def relu(k: Row, tangent: Row, inverse1: Row, inverse2: Row) -> None:
    """``k <- D(k)``, ``tangent <- D'(k) tangent``, entry by entry, with ``1 / sqrt(q)`` of both sides."""
    for i in range(k.shape[0]):
        inverse = inverse1[i] * inverse2[i]
        covariance = k[i]
        cosine = covariance * inverse
        z = 0.5 - 0.5 * abs(cosine)
        z = z if z > 0.25 * PARALLEL else 0.0
        turn, slope = _arcsine(cosine, z)
        sine = math.sqrt(z * (math.pi**-2 - math.pi**-2 * z))  # over 2 pi
        derivative = (0.25 + 0.25 * turn) + slope * sine
        k[i] = covariance * derivative + sine / inverse
        tangent[i] *= derivative


@compiled
def erf(k: Row, tangent: Row, scale1: Row, scale2: Row) -> None:
    """As `relu`, with scales ``1 / sqrt(1/2 + q)``."""
    for i in range(k.shape[0]):
        scale = scale1[i] * scale2[i]
        cosine = k[i] * scale
        z = 0.5 - 0.5 * abs(cosine)
        turn, slope = _arcsine(cosine, z)
        sine = math.sqrt(z * (16 * math.pi**-2 - 16 * math.pi**-2 * z))  # times 2 / pi
        k[i] = turn + slope * sine
        tangent[i] *= (4 * math.pi**-2) * scale / sine


@compiled
def gelu(k: Row, tangent: Row, variance1: Row, variance2: Row) -> None:
    """As `relu`, with variances; ``arctan(k / r)`` is the arcsin of ``c = k / sqrt(volume)``."""
    for i in range(k.shape[0]):
        one, two, here = variance1[i], variance2[i], k[i]
        product = one * two
        inverse = 1.0 / math.sqrt((1.0 + one) * (1.0 + two))
        cosine = here * inverse
        z = 0.5 - 0.5 * abs(cosine)
        turn, rest = _arcsine(cosine, z)
        sine = math.sqrt(z * (4.0 - 4.0 * z))
        angle = 0.5 * math.pi * turn + rest * sine
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
    "relu": lambda q: q.clamp_min(torch.finfo(q.dtype).tiny).rsqrt(),
    "erf": lambda q: (0.5 + q).rsqrt(),
    "gelu": lambda q: q,
}


def of_variances(activation: str, q: Tensor) -> Tensor:
    """The dual of each variance with itself, in the shape of q."""
    dual, side = q.flatten().clone(), PREPARED[activation](q).flatten().numpy()
    activate(CODES[activation], dual.numpy(), np.ones(len(dual)), side, side)
    return dual.view(q.shape)
