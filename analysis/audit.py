"""kappa of one kernel by six routes, beside the same on Gaussian points where the theory is true.

Training sets of P points are drawn from a pool of M, the rest of the pool is the test set. For each, kernel ridge
regression, and kappa by

    spectrum    the fixed point of the pool's own spectrum                 needs no training
    resolvent   P / tr (K/P + lam)^-1                                      inputs of the training set alone
    left_out    variance that a point adds to the others, over df1         the same inputs, other average
    loo         lam sqrt(leave-one-out risk/training risk)                 training set alone, with labels
    ratio       lam sqrt(test risk/training risk)                          what the predictor did
    modes       shrinkage of the pool's modes on points left out           what the predictor learned

Three pools are audited alike: the data, the Gaussian control (same spectrum, same target coefficients) and the
elliptical control (the same with every point scaled by the norm of its counterpart): docs/audit.md.

Letters: M pool points, P samples, C outputs, R = (K/P + lam)^-1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.analysis.rows import FOREIGN, Row
from ridgescope.theory import (
    PoolEstimator,
    PoolPrediction,
    Resolvent,
    Resolvents,
    control_pool,
    independent_outputs,
    kappa_from_pool_modes,
    kappa_from_risks,
    leading_modes,
    left_out_estimate,
    left_out_risk,
    pool_estimator,
    pool_kappa_errors,
    resolvent_estimate,
    uneven_kappa,
)
from ridgescope.train.errors import UserError

ROUTES = ("spectrum", "resolvent", "left_out", "loo", "ratio", "modes")
DATA, GAUSSIAN, ELLIPTICAL = "data", "Gaussian control", "elliptical control"


@dataclass(frozen=True)
class KernelAudit:
    """``table``: one row per pool (``model``), P, ridge and draw, as ``evaluate`` takes it; ``pool`` the data's
    decomposition; ``notes``: what could not be had, one line each."""

    table: pd.DataFrame
    pool: PoolEstimator
    notes: list[str]


def audit_kernel(
    gram: Float64[Tensor, "m m"],
    targets: Float64[Tensor, "rows c"],
    *,
    sizes: Sequence[int],
    ridges: Sequence[float],
    num_draws: int = 8,
    seed: int = 0,
    name: str = DATA,
    label: str = "data",
    controls: bool = True,
    precision: torch.dtype = torch.float64,
    advance: Callable[[], None] = lambda: None,
) -> KernelAudit:
    """Audit a kernel on ``gram`` (m, m) and centred ``targets`` (m, c); ridges are in units of the kernel.

    ``precision`` is the type that the kernel was computed in: a ridge that the certificate of a training set's kernel
    refuses is left undetermined, with the reason in the column of that name. ``name`` becomes the model's name,
    ``label`` the data's. One eigendecomposition of m points for each of the three pools and one of P for each training
    set; memory 6 m^2 numbers. ``advance`` is called after each training set.

    Raises ``UserError`` for sizes that do not fit, fewer than three draws, ridges that are not positive, or targets
    that do not vary; ``ValueError`` for a matrix that is no kernel.
    """
    _check(gram, targets, sizes, ridges, num_draws)
    generator = torch.Generator().manual_seed(seed)
    pool = pool_estimator(gram, targets)
    worlds: list[tuple[str, PoolEstimator, Tensor, Tensor, torch.dtype]] = [(name, pool, gram, targets, precision)]
    if controls:
        for control, norms in ((GAUSSIAN, None), (ELLIPTICAL, gram.diagonal())):
            other, labels = control_pool(pool, generator, norms)
            worlds.append((control, pool_estimator(other, labels), other, labels, torch.float64))
    orders = [torch.randperm(len(gram), generator=generator) for _ in range(num_draws)]
    rows: list[Row] = []
    for model, estimator, kernel, labels, dtype in worlds:
        for size in sizes:
            theory = [_predict(estimator, size, ridge) for ridge in ridges]
            for draw, order in enumerate(orders):
                identity = _identity(model, label, size, draw, len(kernel))
                rows += _training_set(kernel, labels, order, size, ridges, theory, estimator, dtype, identity)
                advance()
    table = pd.DataFrame(rows)
    return KernelAudit(table, pool, _notes(table))


def _check(gram: Tensor, targets: Tensor, sizes: Sequence[int], ridges: Sequence[float], num_draws: int) -> None:
    m = len(gram)
    if targets.ndim != 2 or len(targets) != m:
        raise UserError(f"targets have shape {tuple(targets.shape)}; pass one row for each of the {m} points")
    if not sizes or min(sizes) < 10 or max(sizes) > m - 10:
        raise UserError(f"sizes={list(sizes)} must lie between 10 and {m - 10}: test points are what is left of {m}")
    if num_draws < 3:
        raise UserError(f"num_draws={num_draws} gives no error bar; use at least 3, and 8 for useful ones")
    if not ridges or not all(ridge > 0 and math.isfinite(ridge) for ridge in ridges):
        raise UserError(f"ridges={list(ridges)} must be positive: three of the six routes divide by the training risk")
    spread = (targets - targets.mean(0)).abs().max()
    if not float(spread) > 1e-12 * float(targets.abs().max()):
        raise UserError("the targets do not vary over the points, so there is no risk to explain; check the labels")


def _predict(pool: PoolEstimator, size: int, ridge: float) -> "_Theory | str":
    """The pool's prediction, or the reason why it has none."""
    try:
        prediction = pool.predict(size, ridge)
        # leave-one-out trains on one point less, with the same ridge added to the Gram matrix
        shorter = pool.predict(size - 1, ridge * size / (size - 1)).test
        uneven = uneven_kappa(pool, num_samples=size, ridge=ridge)
    except ValueError as error:
        return str(error)
    se, bias = pool_kappa_errors(pool, prediction, size)
    known = math.exp(-bias)
    return _Theory(
        prediction,
        prediction.kappa2 * known,
        se,
        shorter / prediction.test,
        uneven.modes * known,
        uneven.resolvent * known,
    )


@dataclass(frozen=True)
class _Theory:
    """The pool's prediction; its kappa corrected for bias; se of log kappa; risk at P - 1 samples over that at P;
    both kappas of points that differ as the pool's do."""

    prediction: PoolPrediction
    kappa: float
    se_log: float
    shorter: float
    uneven_modes: float
    uneven_resolvent: float


def _identity(model: str, label: str, size: int, draw: int, points: int) -> Row:
    named = {"run": f"{model}, P={size}", "data": label, "model": model, "P": size, "draw": draw, "points": points}
    return named | FOREIGN | {"seed": 0, "converged": True}


def _training_set(
    kernel: Tensor,
    labels: Tensor,
    order: Tensor,
    size: int,
    ridges: Sequence[float],
    theory: Sequence["_Theory | str"],
    pool: PoolEstimator,
    dtype: torch.dtype,
    identity: Row,
) -> list[Row]:
    train, rest = order[:size], order[size:]
    resolvents = Resolvents(kernel[train][:, train] / size, with_eigenvalues=True, precision=dtype)
    fit = _Fit(resolvents, kernel[rest][:, train], labels[train], labels[rest], rest)
    rows = []
    for ridge, known in zip(ridges, theory, strict=True):
        try:
            measured = _measure(fit, resolvents.at(ridge), _known(known), pool)
        except ValueError as error:
            measured = dict.fromkeys(_MEASURED, math.nan) | {"undetermined": str(error)}
        rows.append(identity | {"ridge": ridge} | measured)
    return rows


def _known(theory: "_Theory | str") -> "_Theory":
    if isinstance(theory, str):
        raise ValueError(theory)
    return theory


def _notes(table: pd.DataFrame) -> list[str]:
    """One line for each pool, P and ridge that has no numbers on some training set."""
    missing = table[table["undetermined"] != ""].drop_duplicates(["model", "P", "ridge"])
    return [
        f"{row['model']}: ridge={row['ridge']:g} at P={row['P']} is undetermined: {row['undetermined']}"
        for row in missing.to_dict("records")
    ]


@dataclass(frozen=True)
class _Fit:
    resolvents: Resolvents
    cross: Tensor
    train: Tensor
    test: Tensor
    rest: Tensor


_MEASURED = (
    *(f"kappa_{route}{part}" for route in ROUTES for part in ("", "_se_log")),
    "uneven_modes", "uneven_resolvent", "risk_test", "risk_train", "risk_theory", "risk_loo", "risk_gcv",
    "excess_log", "excess_se_log", "unevenness", "unevenness_gaussian", "repeated",
)  # fmt: skip


def _measure(fit: _Fit, at: Resolvent, theory: _Theory, pool: PoolEstimator) -> Row:
    p, ridge = len(fit.train), at.ridge
    diagonal, solution = at.blocks()[:, 0, 0], at.times(fit.train)  # R_mumu, R y
    predictions = fit.cross @ solution / p
    errors = (predictions - fit.test).square().sum(1)
    test, train = float(errors.mean()), ridge**2 * float(solution.square().sum()) / p
    assert fit.resolvents.eigenvalues is not None
    resolvent = resolvent_estimate(fit.resolvents.eigenvalues.clamp_min(0), ridge=ridge)
    left_out = left_out_estimate(diagonal, ridge=ridge, gamma=resolvent.gamma, kappa=resolvent.kappa_corrected)
    outputs = independent_outputs(predictions - fit.test)
    ratio = kappa_from_risks(
        test, train, ridge, num_samples=p, gamma=resolvent.gamma, test_squared_errors=errors, outputs=outputs
    )
    loo = left_out_risk(
        solution, diagonal, kappa=resolvent.kappa_corrected, se_log=resolvent.se_log, shorter=theory.shorter
    )
    routes = {
        "spectrum": (theory.kappa, theory.se_log),
        "resolvent": (resolvent.kappa_corrected, resolvent.se_log),
        "left_out": (left_out.kappa, math.hypot(resolvent.se_log, left_out.excess_se)),
        "loo": (loo.kappa, loo.se_log),
        "ratio": (ratio.kappa, ratio.se_log),
        "modes": _modes(fit, predictions, theory, pool, resolvent.gamma),
    }
    row = {
        f"kappa_{name}{part}": v for name, pair in routes.items() for part, v in zip(("", "_se_log"), pair, strict=True)
    }
    return row | {
        "uneven_modes": theory.uneven_modes,
        "uneven_resolvent": theory.uneven_resolvent,
        "risk_test": test,
        "risk_train": train,
        "risk_theory": theory.prediction.test,
        "risk_loo": loo.risk,
        "risk_gcv": (resolvent.kappa / ridge) ** 2 * train,
        "excess_log": left_out.excess_log,
        "excess_se_log": left_out.excess_se,
        "unevenness": left_out.unevenness,
        "unevenness_gaussian": left_out.gaussian,
        "repeated": left_out.repeated,
        "undetermined": "",
    }


def _modes(fit: _Fit, predictions: Tensor, theory: _Theory, pool: PoolEstimator, gamma: float) -> tuple[float, float]:
    """Missing where the modes do not bound kappa."""
    start = theory.prediction.pool_ridge
    try:
        found = kappa_from_pool_modes(
            predictions,
            fit.test,
            fit.rest,
            pool,
            num_modes=leading_modes(pool, theory.kappa),
            num_samples=len(fit.train),
            gamma=gamma,
            start=start,
        )
    except (ValueError, RuntimeError):
        return math.nan, math.nan
    return found.kappa, found.se_log
