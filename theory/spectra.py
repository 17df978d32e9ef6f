"""A kernel as the theory sees it: eigenvalues with multiplicities, and a target spread over the same modes.

Symbols: eta_k >= 0 kernel eigenvalues, m_k multiplicities (any positive numbers), tau trace of a bulk of
infinitely many infinitesimal modes, c_k^2 target power of a mode (of the whole block where m_k > 1), s2 label
noise. Units: eigenvalues in units of the kernel, powers in units of the squared target. Shapes: modes (D).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number, Real, as_float64, nonnegative, positive, same_length

Numbers = Float[Tensor, " modes"] | Sequence[float]


@dataclass(frozen=True)
class Spectrum:
    """Kernel eigenvalues, in any order, with optional multiplicities and bulk.

    ``bulk`` is the trace of modes too small and too many to list: it adds bulk/kappa to df1, nothing to df2.
    Checked on construction (``ValueError``): finite, >= 0, float64, equal lengths.

    >>> Spectrum([1.0, 0.5], multiplicities=[1.0, 20.0]).trace.item()
    11.0
    """

    eigenvalues: Numbers
    multiplicities: Numbers | None = None
    bulk: Real = 0.0

    def __post_init__(self) -> None:
        eta = as_float64("eigenvalues", self.eigenvalues)
        if eta.ndim != 1 or len(eta) == 0:
            raise ValueError(f"eigenvalues has shape {tuple(eta.shape)}; pass a vector with an entry")
        object.__setattr__(self, "eigenvalues", nonnegative("eigenvalues", eta))
        bulk = nonnegative("bulk", as_float64("bulk", self.bulk)).to(eta.device)
        object.__setattr__(self, "bulk", bulk)
        if self.multiplicities is not None:
            counts = as_float64("multiplicities", self.multiplicities).to(eta.device)
            same_length("multiplicities", counts, "eigenvalues", len(eta))
            object.__setattr__(self, "multiplicities", positive("multiplicities", counts))

    @property
    def eta(self) -> Float[Tensor, " modes"]:
        """The eigenvalues as a float64 tensor."""
        assert isinstance(self.eigenvalues, Tensor)
        return self.eigenvalues

    @property
    def counts(self) -> Float[Tensor, " modes"] | None:
        """The multiplicities as a float64 tensor, ``None`` where all are one."""
        assert self.multiplicities is None or isinstance(self.multiplicities, Tensor)
        return self.multiplicities

    @property
    def bulk_trace(self) -> Float[Tensor, ""]:
        """The trace of the bulk as a float64 tensor."""
        assert isinstance(self.bulk, Tensor)
        return self.bulk

    @property
    def trace(self) -> Float[Tensor, ""]:
        """Mean squared feature norm, E K(x, x)."""
        return (self.eta if self.counts is None else self.eta * self.counts).sum() + self.bulk_trace

    @property
    def rank(self) -> float:
        """Number of modes with a positive eigenvalue; inf with a bulk."""
        if float(self.bulk_trace) > 0:
            return math.inf
        live = self.eta > 0
        return float(live.sum() if self.counts is None else self.counts[live].sum())

    def with_bulk(self, trace: Real) -> "Spectrum":
        """The same spectrum with ``trace`` more in the bulk."""
        return Spectrum(self.eta, self.counts, self.bulk_trace + as_float64("trace", trace).to(self.eta.device))

    def truncated(self, num_modes: int) -> "Spectrum":
        """Keep the first ``num_modes`` entries and move the trace of the others into the bulk (they act as
        ridge).
        """
        keep = slice(0, num_modes)
        counts = None if self.counts is None else self.counts[keep]
        tail = self.eta[num_modes:] if self.counts is None else (self.eta * self.counts)[num_modes:]
        return Spectrum(self.eta[keep], counts, self.bulk_trace + tail.sum())


@dataclass(frozen=True)
class Target:
    """Target power per entry of a spectrum (``c_k^2``; total over a block), and the variance ``noise`` of the
    labels.

    Power on modes of eigenvalue 0, and on a bulk, belongs to noise for every purpose: it cannot be learned.
    """

    power: Numbers
    noise: Real = 0.0

    def __post_init__(self) -> None:
        power = nonnegative("target power", as_float64("target power", self.power))
        object.__setattr__(self, "power", power)
        noise = nonnegative("noise", as_float64("noise", self.noise), "pass a variance").to(power.device)
        object.__setattr__(self, "noise", noise)

    @property
    def c2(self) -> Float[Tensor, " modes"]:
        """The power as a float64 tensor."""
        assert isinstance(self.power, Tensor)
        return self.power

    @property
    def s2(self) -> Float[Tensor, ""]:
        """The label noise as a float64 tensor."""
        assert isinstance(self.noise, Tensor)
        return self.noise

    @classmethod
    def from_coefficients(cls, coefficients: Float[Tensor, " modes *outputs"], noise: Real = 0.0) -> "Target":
        """One or several outputs from signed coefficients; risks are then summed over outputs, and so is
        ``noise``.
        """
        c = as_float64("coefficients", coefficients)
        return cls(c.square().reshape(len(c), -1).sum(1), as_float64("noise", noise).sum())

    def matches(self, spectrum: Spectrum) -> "Target":
        """This target, if it has one power per entry of ``spectrum``; ``ValueError`` otherwise."""
        same_length("target power", self.c2, "the spectrum", len(spectrum.eta))
        return self


def power_law(num_modes: int, alpha: Number, scale: Number = 1.0) -> Spectrum:
    """``eta_k = scale k^-alpha``, every mode listed: 8 bytes a mode. See ``compressed_power_law`` for long
    tails.
    """
    check_power_law(num_modes, alpha, scale)
    return Spectrum(scale * torch.arange(1, num_modes + 1, dtype=torch.float64) ** -alpha)


def power_law_target(num_modes: int, exponent: Number, scale: Number = 1.0, noise: Real = 0.0) -> Target:
    """``c_k^2 = scale k^-exponent``; ``exponent = 2 alpha r + 1`` is a source condition r on
    ``power_law``.
    """
    check_power_law(num_modes, exponent, scale)
    return Target(scale * torch.arange(1, num_modes + 1, dtype=torch.float64) ** -exponent, noise)


def compressed_power_law(
    num_modes: Number, alpha: Number, exponent: Number, *, scale: Number = 1.0, noise: Real = 0.0, head: int = 256
) -> tuple[Spectrum, Target]:
    """A power law and its target, with each octave of the tail replaced by 20 exact quadrature nodes.

    The first ``head`` modes are listed. Beyond them each octave of integers gets the Gauss rule of its own
    counting measure (discrete Chebyshev polynomials), which sums polynomials up to degree 39 in k without
    error. The summands of this theory are analytic in k away from arg k = pi/alpha: every sum agrees with the
    listed one to 1e-13 for ``alpha <= 6``. 10^7 modes take 600 numbers, 10^12 take 900. O(nodes).

    >>> spectrum, target = compressed_power_law(1e7, 1.5, 2.0)
    >>> len(spectrum.eta), round(sum(spectrum.counts.tolist()))
    (576, 10000000)
    """
    check_power_law(num_modes, alpha, scale)
    if head < 32:
        raise ValueError(f"head={head} must be at least 32 for an octave to hold more integers than nodes")
    first = torch.arange(1, min(head, num_modes) + 1, dtype=torch.float64)
    nodes, weights = [first], [torch.ones_like(first)]
    start = float(head)
    while start < num_modes:
        stop = min(2 * start, float(num_modes))
        k, w = _counting_gauss(int(stop - start), 20)
        nodes.append(start + 1 + k)
        weights.append(w)
        start = stop
    k, m = torch.cat(nodes), torch.cat(weights)
    return Spectrum(scale * k**-alpha, m), Target(m * k**-exponent, noise)


def _counting_gauss(count: int, order: int) -> tuple[Tensor, Tensor]:
    """Gauss nodes and weights for ``sum_{j=0}^{count-1} f(j)``, from the Jacobi matrix of Chebyshev's
    polynomials.
    """
    if count <= order:
        return torch.arange(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    i = torch.arange(1, order, dtype=torch.float64)
    off = (i**2 * (float(count) ** 2 - i**2) / (4 * (4 * i**2 - 1))).sqrt()
    scale = count / 2
    nodes, vectors = torch.linalg.eigh(torch.diag(off / scale, 1) + torch.diag(off / scale, -1))
    return (count - 1) / 2 + scale * nodes, count * vectors[0] ** 2


def geometric(num_modes: int, first: Number, last: Number) -> Spectrum:
    """``num_modes`` eigenvalues from ``first`` to ``last`` at equal ratios."""
    check_power_law(num_modes, 1.0, first)
    if not last > 0:
        raise ValueError(f"last={last:g} must be > 0; a geometric spectrum cannot reach 0")
    steps = torch.arange(num_modes, dtype=torch.float64) / max(num_modes - 1, 1)
    return Spectrum(first * (last / first) ** steps)


def gaussian_equivalent(
    input_eigenvalues: Float[Tensor, " d"], mean: Number, slope: Number, residual: Number
) -> Spectrum:
    """The kernel spectrum of nonlinear random features ``f(w.x)`` on Gaussian inputs, in the proportional
    regime.

    ``input_eigenvalues`` (d) have mean 1; ``mean = E f(z)``, ``slope = E z f(z)``, ``residual^2 = E f^2 -
    mean^2 - slope^2``. Entries: the constant mode ``mean^2``, then ``slope^2 l_i/d``; ``residual^2`` is the
    bulk. Target power on the bulk counts as noise. Fails (train risk off by > 10 %) where a heavy-tailed bulk
    carries df1. Source: Gaussian equivalence as in arXiv:2405.00592.
    """
    levels = nonnegative("input_eigenvalues", as_float64("input_eigenvalues", input_eigenvalues))
    if abs(float(levels.mean()) - 1) > 1e-6:
        raise ValueError(f"input_eigenvalues average to {float(levels.mean()):g}, not 1; divide by that mean")
    constant = levels.new_tensor([mean**2])
    return Spectrum(torch.cat([constant, slope**2 * levels / len(levels)]), None, residual**2)


def check_power_law(num_modes: Number, alpha: Number, scale: Number) -> None:
    """Refuse a power law without modes, or with a scale or exponent that is not a finite number."""
    if not (num_modes >= 1 and math.isfinite(num_modes)):
        raise ValueError(f"num_modes={num_modes:g} must be finite and at least 1; pass a cutoff such as 1e12")
    if not (math.isfinite(alpha) and scale > 0 and math.isfinite(scale)):
        raise ValueError(f"exponent={alpha:g} must be finite, scale={scale:g} finite and > 0; change them")
