"""One spectrum, many (P, N, lam): df1 as a piecewise Chebyshev series in log kappa, so that queries cost no
pass.

df1(e^t) is analytic in the strip |Im t| < pi, whatever the spectrum: on unit segments of t the Chebyshev
series converges like 12^-degree, and degree 15 reaches rounding. Building the table costs 16 evaluations of
df1 per e-fold of kappa; each query then a few short series. Where rounding of df1 would cost more than
``accuracy`` in kappa (spectral gaps, saturated modes) the exact solver is called for those points.

Symbols: t = log kappa, n_l sizes, a the smallest, g = a - df1 spare budget. Shapes: grid points (G), segments
(S).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number, Real, as_float64, nonnegative, positive
from ridgescope.theory.solver import BLOCK, solve_kappa, spare_budget
from ridgescope.theory.spectra import Spectrum

DEGREE = 15


class KappaTable:
    """df1 of a spectrum for kappa between ``low`` and ``high``, ready for ``solve``.

    ``accuracy`` bounds the relative error of kappa from rounding in df1; points that cannot meet it are
    solved exactly. Build: 16 log(high/low) passes over the modes. Memory: as many numbers. No gradient.

    >>> from ridgescope.theory import power_law
    >>> table = KappaTable(power_law(1000, 1.5), low=1e-7, high=1e3)
    >>> table.solve([1e-3], [[100.0]]).shape
    torch.Size([1])
    """

    def __init__(self, spectrum: Spectrum, *, low: Number, high: Number, accuracy: Number = 1e-12) -> None:
        if not 0 < low < high < math.inf:
            raise ValueError(f"low={low:g}, high={high:g} must be 0 < low < high < inf; bracket the kappas")
        self.spectrum, self.accuracy = spectrum, accuracy
        self.start = math.log(low)
        self.segments = math.ceil(math.log(high) - self.start)
        device = spectrum.eta.device
        i = torch.arange(DEGREE + 1, dtype=torch.float64, device=device)
        angles = math.pi * (i + 0.5) / (DEGREE + 1)
        offsets = torch.arange(self.segments, dtype=torch.float64, device=device)[:, None]
        t = self.start + offsets + (1 + angles.cos()) / 2
        values = self._df1(t.reshape(-1).exp()).reshape(self.segments, DEGREE + 1)
        transform = (i[:, None] * angles).cos() * 2 / (DEGREE + 1)
        transform[0] /= 2
        self.coefficients = values @ transform.T  # (S, degree + 1)
        edges = self.start + torch.arange(self.segments + 1, dtype=torch.float64, device=device)
        self.edges = edges
        signs = torch.where(i % 2 == 0, 1.0, -1.0)
        # value at both ends of each segment: T_j(-1) = (-1)^j, T_j(1) = 1
        left, right = (self.coefficients * signs).sum(1), self.coefficients.sum(1)
        self.edge_values = torch.cat([left, right[-1:]])

    def _df1(self, kappa: Tensor) -> Tensor:
        eta, counts = self.spectrum.eta.detach(), self.spectrum.counts
        weight = torch.ones_like(eta) if counts is None else counts.detach()
        parts = []
        for part in kappa.split(max(1, BLOCK // len(eta))):
            parts.append((eta / (eta + part[:, None])) @ weight)
        return torch.cat(parts) + self.spectrum.bulk_trace.detach() / kappa

    def df1(self, kappa: Float[Tensor, " g"]) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
        """df1 and ``d12 = -d df1/d log kappa`` from the table; kappa is clamped to its range. O(degree) a
        point.
        """
        return self._evaluate(kappa.log())

    def _evaluate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        segment = (t - self.start).floor().clamp(0, self.segments - 1)
        x = (2 * (t - self.start - segment) - 1).clamp(-1, 1)
        c = self.coefficients[segment.to(torch.int64)].T.contiguous()
        # Clenshaw for the series and, by differentiating the recurrence, for its slope
        b1 = b2 = d1 = d2 = torch.zeros_like(x)
        for j in range(DEGREE, 0, -1):
            d1, d2 = 2 * (b1 + x * d1) - d2, d1
            b1, b2 = c[j] + 2 * x * b1 - b2, b1
        return c[0] + x * b1 - b2, -2 * (b1 + x * d1 - d2)

    def solve(self, ridge: Real | list[float], sizes: Real | list[list[float]]) -> Float[Tensor, " g"]:
        """kappa for ``ridge`` (G) and ``sizes`` (S, G): samples and widths of each point, inf where absent.

        Accurate to ``accuracy``, by 5 bisections over segments and about 6 Newton steps; points outside the
        table, or too ill-conditioned for it, go to the exact solver. ``ValueError`` for bad ridges, sizes or
        shapes.
        """
        device = self.spectrum.eta.device
        lam = nonnegative("ridge", as_float64("ridge", ridge)).detach().to(device)
        size = positive("sizes", as_float64("sizes", sizes), allow_infinite=True).detach().to(device)
        if lam.ndim != 1 or size.ndim != 2 or size.shape[1] != len(lam):
            raise ValueError(f"ridge has shape {tuple(lam.shape)} and sizes {tuple(size.shape)}; pass (G) and (S, G)")
        size = size.sort(0).values
        kappa, trusted = self._newton(lam, size)
        rest = (~trusted).nonzero().squeeze(1)
        if len(rest):
            eta, counts = self.spectrum.eta, self.spectrum.counts
            with torch.no_grad():
                kappa[rest] = solve_kappa(eta, counts, self.spectrum.bulk_trace, lam[rest], size[:, rest])
        return kappa

    def _excess(self, df1: Tensor, t: Tensor, lam: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F = df1 - a + g, the part of -dF/dt that the budget adds, and the size of its rounding error."""
        s = lam * (-t).exp()
        g, q = spare_budget(s.clamp_max(1), size)
        # below kappa = lam there is no solution: F is positive there by any amount
        return torch.where(s > 1, df1 + s, df1 - size[0] + g), g / q, df1.abs() + g

    def _newton(self, lam: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.isfinite(size[0])
        size = torch.where(inside, size, torch.ones_like(size))
        low = torch.zeros_like(lam, dtype=torch.int64)
        high = torch.full_like(low, self.segments)
        for _ in range(self.segments.bit_length()):
            middle = (low + high) // 2
            excess, _, _ = self._excess(self.edge_values[middle], self.edges[middle], lam, size)
            low, high = torch.where(excess > 0, middle, low), torch.where(excess > 0, high, middle)
        # kappa >= lam holds for the root, and keeps Newton off the clamped branch below it
        first, last = torch.maximum(self.edges[low], lam.log()), self.edges[high]
        t = (first + last) / 2
        moved = torch.full_like(t, math.inf)
        for _ in range(30):
            df1, d12 = self._evaluate(t)
            excess, budget, scale = self._excess(df1, t, lam, size)
            slope = d12 + budget
            first, last = torch.where(excess > 0, t, first), torch.where(excess > 0, last, t)
            new = t + excess / slope
            new = torch.where((new >= first) & (new <= last), new, (first + last) / 2)
            moved = (new - t).abs()
            t = new
            if bool((moved < 1e-8).all()):  # quadratic: the next error is the square
                break
        df1, d12 = self._evaluate(t)
        excess, budget, scale = self._excess(df1, t, lam, size)
        t = t + excess / (d12 + budget)
        # 8 units of rounding in df1 and in a, divided by the slope, must stay below the accuracy
        rounding = 8 * torch.finfo(torch.float64).eps * (scale + size[0]) / (d12 + budget)
        within = (t > self.edges[0]) & (t < self.edges[-1]) & (moved < 1e-8)
        return t.exp(), inside & within & (rounding < self.accuracy)
