"""Finite width: pilots of several widths joined on the scale of 1/N, and what an ensemble of networks saves.

Two networks of one width are two kernels: at width 64 their risks differ by some 10 % on the same points. The
forecast is for one more network, so that this scatter, measured on the drawn ones, is part of its error.

At a given P and ridge the log risk is interpolated linearly in 1/N between the widths whose kernels were measured;
infinite width, where it is known, is the point 1/N = 0. Averaging E networks on the same data leaves

    E_test(E) = E_inf + (E_test(1) - E_inf)/E,

with E_inf the covariance of the errors of two networks. Two drawn kernels on the pool give it at any pool ridge:
G_x = mean of the product of their left-out errors, gamma_x = M-point share of variance that they have in common, from
``(1/M) tr R R' = 1/(kappa kappa' (1 - gamma_x))``; at P points E_inf = G_x (1 - gamma_x)/(1 - gamma_x M/P).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from scipy.stats import t as student
from torch import Tensor

from ridgescope.analysis.forecast.pilot import LEVEL, QUANTILE, Pilot, PilotRisks
from ridgescope.theory import PoolEstimator
from ridgescope.theory.readings import interpolate
from ridgescope.train.errors import UserError


@dataclass(frozen=True)
class WidthPilots:
    """The pilots of one width, one per drawn network, and log E_inf/E_1 of their ensembles against log kappa."""

    width: int | float
    pilots: list[Pilot]
    floor: tuple[Tensor, Tensor, Tensor] | None  # log kappa, log of G_x/G, gamma_x: (K,) each

    def risks(self, num_samples: int | float, ridges: Float64[Tensor, " n"]) -> PilotRisks:
        """Mean over the drawn networks, for one more network of this width: the draws' scatter joins the error."""
        each = [pilot.risks(num_samples, ridges) for pilot in self.pilots]
        log_risk = torch.stack([risks.log_risk for risks in each])
        names = ("se", "noise", "kappa", "share", "beyond")
        mean = {name: torch.stack([getattr(r, name) for r in each]).mean(0) for name in names}
        mean["se"] = (mean["se"] ** 2 + _one_more(log_risk) ** 2).sqrt()
        return PilotRisks(log_risk.mean(0), **mean)

    def ensemble_floor(self, num_samples: int | float, risks: PilotRisks) -> Float64[Tensor, " n"]:
        """E_inf/E_1 at each ridge, at most 1; 1 for infinite width and where a single network was drawn."""
        if self.floor is None:
            return torch.ones_like(risks.log_risk)
        log_kappa, ratio, gamma = self.floor
        size = self.pilots[0].size
        at = risks.kappa.log()
        ratio, gamma = interpolate(at, log_kappa, ratio), interpolate(at, log_kappa, gamma)
        own = self.pilots[0].curve
        df1, slope = own.at(at)[0].exp(), (own.at(at + 0.05)[0] - own.at(at - 0.05)[0]) / 0.1
        full = (df1 * (1 + slope)).clamp_min(0)
        shared = torch.minimum(gamma * size, full)
        change = _left(full, size) / _left(full, num_samples)  # of E_1 from the pool to P, at this kappa
        common = _left(shared, size) / _left(shared, num_samples)
        return (ratio.exp() * common / change).clamp(max=1)


def _one_more(log_risk: Float64[Tensor, "draws n"]) -> Float64[Tensor, " n"]:
    """The error of another draw about the mean of these, in the units of a normal law's interval.

    ``s sqrt(1 + 1/n)``, with Student's quantile for an ``s`` from n draws; 0 for a single kernel that is what it is.
    """
    draws = len(log_risk)
    if draws < 2:
        return torch.zeros_like(log_risk[0])
    few = float(student.ppf((1 + LEVEL) / 2, draws - 1)) / QUANTILE
    return few * (1 + 1 / draws) ** 0.5 * log_risk.std(0)


def _left(df2: Tensor, points: int | float) -> Tensor:
    return (1 - df2 / points).clamp_min(1e-3)


def ensemble_readings(
    first: PoolEstimator, second: PoolEstimator, pool_ridges: Float64[Tensor, " k"]
) -> tuple[Tensor, Tensor, Tensor]:
    """``floor`` of `WidthPilots` from two drawn kernels on one pool: one product of M x M matrices, M^2 per ridge."""
    overlap = (first.vectors.T @ second.vectors).square()
    rows: list[list[float]] = []
    for k in pool_ridges.tolist():
        kappas, errors, resolvents = [], [], []
        for pool in (first, second):
            r = 1 / (pool.eigenvalues + k)
            resolvents.append(r)
            kappas.append(1 / float(r.mean()))
            diagonal = pool.vectors.square() @ r
            errors.append((pool.vectors @ (pool.projections * r[:, None])) / diagonal[:, None])
        own = sum(float(e.square().sum()) for e in errors) / 2
        shared = float((errors[0] * errors[1]).sum())
        trace = float(resolvents[0] @ overlap @ resolvents[1]) / first.size
        gamma = 1 - 1 / (kappas[0] * kappas[1] * trace)
        rows.append([math.log(kappas[0] * kappas[1]) / 2, math.log(max(shared, 1e-12 * own) / own), gamma])
    columns = torch.tensor(rows, dtype=torch.float64).T
    order = columns[0].argsort()
    return columns[0][order], columns[1][order], columns[2][order].clamp_min(0)


def at_width(
    measured: Sequence[WidthPilots], width: int | float, num_samples: int | float, ridges: Float64[Tensor, " n"]
) -> tuple[PilotRisks, bool]:
    """Risks at any width not below the narrowest that was measured, and whether 1/N was extrapolated.

    Raises ``UserError`` for a narrower one, and where a single finite width cannot say how the risk falls with it.
    """
    for pilots in measured:
        if pilots.width == width:
            return pilots.risks(num_samples, ridges), False
    inverse = [1 / pilots.width for pilots in measured]
    order = sorted(range(len(measured)), key=lambda i: inverse[i])
    wanted = 1 / width
    if wanted > inverse[order[-1]] or len(order) < 2:
        raise UserError(
            f"width {width:g} was asked for, kernels were measured at {', '.join(f'{p.width:g}' for p in measured)}; "
            "measure a narrower one and a second one"
        )
    above = next((i for i in range(1, len(order)) if inverse[order[i]] >= wanted), len(order) - 1)
    low, high = measured[order[above - 1]], measured[order[above]]
    a, b = low.risks(num_samples, ridges), high.risks(num_samples, ridges)
    t = (wanted - 1 / low.width) / (1 / high.width - 1 / low.width)
    extrapolated = t < 0
    mixed = {
        name: getattr(a, name) + t * (getattr(b, name) - getattr(a, name)) for name in ("log_risk", "share", "beyond")
    }
    guess = abs(t) * (b.log_risk - a.log_risk).abs() / 2 if extrapolated else torch.zeros_like(a.se)
    se = (torch.maximum(a.se, b.se) ** 2 + guess**2).sqrt()
    kappa = (a.kappa.log() + t * (b.kappa.log() - a.kappa.log())).exp()
    noise = torch.maximum(a.noise, b.noise)
    return PilotRisks(mixed["log_risk"], se, noise, kappa, mixed["share"], mixed["beyond"]), extrapolated


def paying_members(floor: int | float, gain: int | float = 0.01, most: int = 64) -> int:
    """The members after which one more lowers the risk by less than ``gain``."""
    members = 1
    while members < most:
        now, more = floor + (1 - floor) / members, floor + (1 - floor) / (members + 1)
        if 1 - more / now < gain:
            break
        members += 1
    return members
