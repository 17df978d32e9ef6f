"""A Gaussian's covariance behind an activation, for a row of pairs at once, compiled by Numba for the CPU.

`ridgescope.models.kernels.duals` says what is computed; here the same formulas are written so that the compiler puts
neighbouring pairs into the lanes of one vector: no branches, no library calls, no argument that needs division.

With cosine ``c`` and ``z = (1 - |c|) / 2`` the acute angle's sine is ``2 sqrt(z (1 - z))`` and the angle
``2 arcsin(sqrt(z))`` is the sine times a smooth function of z, exact to rounding for nearly parallel pairs too.
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
def _angle_ratio(z):  # type: ignore[no-untyped-def]
    """``arcsin(sqrt(z)) / sqrt(z (1 - z))`` for ``0 <= z <= 1/2`` to 3e-17: degree 21, from Chebyshev nodes.

    Every fourth power apart: four short chains run side by side where one long one would wait for itself.
    """
    y = z * z
    w = y * y
    a = -528.6951190894584
    b = 124.90557712021847
    a = -723.5957606018904 + w * a
    b = 1143.1922306113481 + w * b
    c = -1322.3100058405523
    d = 1060.6704907215349
    a = -8.015738877077943 + w * a
    b = 37.03818105024594 + w * b
    c = -127.7987182977923 + w * c
    d = 346.9766119514734 + w * d
    a = 0.2979467776340002 + w * a
    b = 0.3041717465184401 + w * b
    c = 0.07384425454861401 + w * c
    d = 1.7059859198504694 + w * d
    a = 0.4063492047563086 + w * a
    b = 0.3694084669797175 + w * b
    c = 0.3409886917655436 + w * c
    d = 0.31835035264092015 + w * d
    a = 1.0 + w * a
    b = 0.6666666666666667 + w * b
    c = 0.5333333333332864 + w * c
    d = 0.45714285715659597 + w * d
    return (a + z * b) + y * (c + z * d)


@compiled
def relu(k: Row, tangent: Row, inverse1: Row, inverse2: Row) -> None:
    """``k <- D(k)``, ``tangent <- D'(k) tangent``, entry by entry, with ``1 / sqrt(q)`` of both sides."""
    for i in range(k.shape[0]):
        inverse = inverse1[i] * inverse2[i]
        covariance = k[i]
        cosine = covariance * inverse
        z = 0.5 - 0.5 * abs(cosine)
        z = z if z > 0.25 * PARALLEL else 0.0
        half = math.sqrt(z * (1.0 - z)) * (1.0 / math.pi)
        share = half * _angle_ratio(z)  # of the full angle 2 pi
        derivative = 0.5 - share if cosine > 0.0 else share
        k[i] = covariance * derivative + half / inverse
        tangent[i] *= derivative


@compiled
def erf(k: Row, tangent: Row, scale1: Row, scale2: Row) -> None:
    """As `relu`, with scales ``1 / sqrt(1 + 2 q)``."""
    for i in range(k.shape[0]):
        scale = scale1[i] * scale2[i]
        cosine = 2.0 * k[i] * scale
        z = 0.5 - 0.5 * abs(cosine)
        half = math.sqrt(z * (1.0 - z))
        value = 1.0 - half * _angle_ratio(z) * (4.0 / math.pi)
        k[i] = value if cosine > 0.0 else -value
        tangent[i] *= (2.0 / math.pi) * scale / half


@compiled
def gelu(k: Row, tangent: Row, variance1: Row, variance2: Row) -> None:
    """As `relu`, with variances; ``arctan(k / r)`` is the arcsin of ``c = k / sqrt(volume)``."""
    for i in range(k.shape[0]):
        one, two, here = variance1[i], variance2[i], k[i]
        product = one * two
        inverse = 1.0 / math.sqrt((1.0 + one) * (1.0 + two))
        cosine = here * inverse
        z = 0.5 - 0.5 * abs(cosine)
        sine = 2.0 * math.sqrt(z * (1.0 - z))
        acute = 0.5 * math.pi - sine * _angle_ratio(z)
        angle = acute if cosine > 0.0 else -acute
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
    "erf": lambda q: (1 + 2 * q).rsqrt(),
    "gelu": lambda q: q,
}


def of_variances(activation: str, q: Tensor) -> Tensor:
    """The dual of each variance with itself, in the shape of q."""
    dual, side = q.flatten().clone(), PREPARED[activation](q).flatten().numpy()
    activate(CODES[activation], dual.numpy(), np.ones(len(dual)), side, side)
    return dual.view(q.shape)
