"""What a trained predictor acts like: ridge regression with which ridge, gradient flow until when, on which labels.

On the training points a predictor of the kernel's space filters the labels: with (s_i, u_i) eigenpairs of K/P

    ridge            u_i . f = s_i/(s_i + lam) u_i . y
    gradient flow    u_i . f = (1 - exp(-t s_i)) u_i . y           (for the loss without 1/2: t counts twice)
    other labels     u_i . f = s_i/(s_i + lam) (u_i . y + noise)   the known lam, noise of unknown variance

Each is fitted by its one number. The ridge and the flow are nested in nothing, so the one with the smaller misfit is
preferred; noise is what a known ridge leaves over where neither filter explains it.

Symbols: P samples, C outputs, n = P or P C eigenvalues; y_i, f_i projections of labels and predictions (n, c).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from ridgescope.theory._checks import Number, as_float64

Filter = Callable[[float], Tensor]


@dataclass(frozen=True)
class Acting:
    """``ridge`` and ``time`` that fit the predictions best, their misfits and that of the ridge it was told.

    Misfits are shares of the labels' power, |f - filter y|^2/|y|^2. ``noise`` is the variance per sample (summed over
    outputs) of labels that were not y, if the told ridge is right. ``reading`` is the simplest account within 10 % of
    the smallest misfit: told | ridge | flow | labels.
    """

    ridge: float
    ridge_misfit: float
    time: float
    flow_misfit: float
    told_misfit: float
    noise: float
    reading: str


def acting_ridge(
    eigenvalues: Float[Tensor, " n"],
    labels: Float[Tensor, "n c"],
    predictions: Float[Tensor, "n c"],
    *,
    ridge: Number,
    num_samples: Number,
    tolerance: Number = 1e-4,
) -> Acting:
    """Compare the filters, from ``labels`` and ``predictions`` in the eigenbasis of K/P with ``eigenvalues``.

    ``ridge`` is the one that the predictor is said to have. A misfit below ``tolerance`` counts as none: it is the
    square of what training to a finite optimum, and finite laziness, leave (1 % of the labels by default). A filter
    must explain nine tenths of the misfit of the told ridge to be believed, else the labels were others. O(n c) a step.

    Raises ``ValueError`` for a ridge that is not positive or labels without power.
    """
    s, y, f = (
        as_float64(n, v) for n, v in (("eigenvalues", eigenvalues), ("labels", labels), ("predictions", predictions))
    )
    if not (ridge > 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge={ridge:g} must be positive and finite; an interpolating predictor has no acting ridge")
    power = float(y.square().sum())
    if not power > 0:
        raise ValueError("the labels are all zero; a predictor of zero acts like every ridge")
    s = s.clamp_min(0)
    top = float(s.max())

    def misfit(shape: Tensor) -> float:
        return float((f - shape[:, None] * y).square().sum()) / power

    def by_ridge(log_ridge: float) -> Tensor:
        return s / (s + math.exp(log_ridge))

    def by_flow(log_time: float) -> Tensor:
        return -torch.expm1(-math.exp(log_time) * s)

    log_ridge, ridge_misfit = _best(lambda x: misfit(by_ridge(x)), math.log(1e-9 * top), math.log(1e3 * top))
    log_time, flow_misfit = _best(lambda x: misfit(by_flow(x)), math.log(1e-3 / top), math.log(1e9 / top))
    learned = s / (s + ridge)
    told = misfit(learned)
    # labels that would give these predictions, where the filter passes enough to tell
    passed = learned > 0.1
    others = (f[passed] / learned[passed][:, None] - y[passed]).square().sum() / max(int(passed.sum()), 1)
    noise = float(others) * len(s) / float(num_samples)
    best = min(ridge_misfit, flow_misfit)
    if told <= tolerance:
        reading = "told"
    elif best > 0.1 * told:
        reading = "labels"
    else:
        reading = "ridge" if ridge_misfit <= flow_misfit else "flow"
    return Acting(math.exp(log_ridge), ridge_misfit, math.exp(log_time), flow_misfit, told, noise, reading)


def _best(misfit: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """The smallest misfit on a grid, refined between its neighbours: the misfit can have several minima."""
    grid = torch.linspace(low, high, 100, dtype=torch.float64).tolist()
    values = [misfit(x) for x in grid]
    i = min(range(len(grid)), key=values.__getitem__)
    ends = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    found = minimize_scalar(misfit, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return (float(found.x), float(found.fun)) if found.fun < values[i] else (grid[i], values[i])
