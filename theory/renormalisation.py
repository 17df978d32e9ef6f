"""Renormalisation as an algebra: each source of fluctuation multiplies the ridge by its S-transform.

A source of size n turns the ridge seen after it, kappa_out, into kappa_in = S kappa_out with S = 1/(1 -
df1/n). Chains of sources multiply their S, df1 being the same for all (it is what a ridge at the last level
leaves), so

    lam = kappa prod_l (1 - df1/n_l),      kappa_1 after the samples, kappa_2 = kappa after every source.

Kernel ridge regression is ``Samples(P)``, random features ``Samples(P) @ Features(N)``, deep ones
``Samples(P) @ Features(N1) @ Features(N2)``, the naive use of a pool one more ``Samples``, its inversion
``Pool(M)``, and modes too small to list are ``AdditiveNoise(trace)``. Sources: arXiv:2405.00592 (S-transforms
and train-test gap), arXiv:2311.14646 (random features), arXiv:2303.00564 (deep features).

Symbols: L = eta/(eta+kappa), U = 1-L, df1 = sum m L, df2 = sum m L^2, d12 = df1 - df2, o_l = 1 - df1/n_l.
Shapes: sizes, ridge and all results share one grid shape by broadcasting; modes (D).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Real, as_float64, nonnegative, positive
from ridgescope.theory.solver import solve_kappa, spare_budget
from ridgescope.theory.spectra import Spectrum

BLOCK = 2**20  # numbers per temporary in the sums over (grid, modes): 8 MB


class Source:
    """A source of fluctuation. ``a @ b`` is the chain of both; the order does not change the risk."""

    def __matmul__(self, other: "Source") -> "Chain":
        return Chain(_parts(self) + _parts(other))


def _parts(source: Source) -> tuple[Source, ...]:
    return source.sources if isinstance(source, Chain) else (source,)


@dataclass(frozen=True)
class _Sized(Source):
    size: Real

    def __post_init__(self) -> None:
        positive(f"the size of {type(self).__name__}", as_float64("size", self.size), allow_infinite=True)

    def s_transform(self, df1: Real) -> Tensor:
        """``1/(1 - df1/size)``: how much this source multiplies the ridge when df1 modes are fitted."""
        return 1 / (1 - as_float64("df1", df1) / as_float64("size", self.size))


class Samples(_Sized):
    """P independent training samples (inf: the population). Carries the train-test gap."""


class Features(_Sized):
    """N random features, or one further layer of them (inf: the kernel limit)."""


class Pool(_Sized):
    """The spectrum was measured on M points, of which the samples are a part: its S-transform is divided
    out.
    """

    def s_transform(self, df1: Real) -> Tensor:
        """``1 - df1/size``."""
        return 1 / super().s_transform(df1)


@dataclass(frozen=True)
class AdditiveNoise(Source):
    """White noise on the features, or a bulk of unlisted modes, of given ``trace``: adds trace/kappa to df1.

    With samples alone it is an additive ridge trace/P. Its S-transform is 1: it adds to the spectrum instead.
    """

    trace: Real

    def __post_init__(self) -> None:
        nonnegative("the trace of AdditiveNoise", as_float64("trace", self.trace))

    def s_transform(self, df1: Real) -> Tensor:
        """1, for any df1."""
        return torch.ones_like(as_float64("df1", df1))


@dataclass(frozen=True)
class Chain(Source):
    """Sources in order, data first. ``renormalise`` solves the chain on a spectrum."""

    sources: tuple[Source, ...]

    def s_transform(self, df1: Real) -> Tensor:
        """The product of the S-transforms: kappa/lam."""
        factor = torch.ones_like(as_float64("df1", df1))
        for source in self.sources:
            factor = factor * source.s_transform(df1)  # type: ignore[attr-defined]
        return factor


@dataclass(frozen=True)
class Renormalised:
    """A chain solved at each grid point. All tensors have the grid's shape.

    ``levels[l]`` is the ridge after source l (the last is ``kappa2``); ``spare_samples = 1 - df1/P`` and
    ``spare_features[l] = 1 - df1/N_l`` are free of cancellation. ``rho`` in [0, 1] is the share of d12 that
    the features let through. ``gamma2 = df2/P`` and ``gamma1 = gamma2 + (1-rho) d12/P`` are the overfitting
    coefficients; ``open1 = 1 - gamma1``, ``open2 = 1 - gamma2`` and ``gap = gamma1 - gamma2``
    cancellation-free.
    """

    spectrum: Spectrum
    ridge: Float[Tensor, " *grid"]
    num_samples: Float[Tensor, " *grid"]
    kappa1: Float[Tensor, " *grid"]
    kappa2: Float[Tensor, " *grid"]
    levels: tuple[Float[Tensor, " *grid"], ...]
    df1: Float[Tensor, " *grid"]
    df2: Float[Tensor, " *grid"]
    d12: Float[Tensor, " *grid"]
    spare_samples: Float[Tensor, " *grid"]
    spare_features: tuple[Float[Tensor, " *grid"], ...]
    rho: Float[Tensor, " *grid"]
    blocked: Float[Tensor, " *grid"]

    @property
    def gamma2(self) -> Float[Tensor, " *grid"]:
        """df2/P."""
        return self.df2 / self.num_samples

    @property
    def gap(self) -> Float[Tensor, " *grid"]:
        """gamma1 - gamma2 = (1-rho) d12/P."""
        return self.blocked * self.d12 / self.num_samples

    @property
    def gamma1(self) -> Float[Tensor, " *grid"]:
        """What the training kernel's resolvent measures; equals gamma2 at infinite width."""
        return self.gamma2 + self.gap

    @property
    def open1(self) -> Float[Tensor, " *grid"]:
        """1 - gamma1."""
        return self.spare_samples + self.rho * self.d12 / self.num_samples

    @property
    def open2(self) -> Float[Tensor, " *grid"]:
        """1 - gamma2."""
        return self.spare_samples + self.d12 / self.num_samples

    @property
    def train_test_gap(self) -> Float[Tensor, " *grid"]:
        """E_test/E_train = S^2 of the samples, (kappa1/lam)^2; inf at interpolation."""
        return self.spare_samples**-2


def renormalise(spectrum: Spectrum, chain: Source, ridge: Real) -> Renormalised:
    """Solve ``lam = kappa prod (1 - df1/n_l)`` on the branch df1 <= min n_l, for every point of a grid.

    ``ridge`` is lam of the loss (1/P) sum (f-y)^2 + lam |w|^2; 0 means lam -> 0+. Sizes and ridge broadcast
    to the grid. kappa is exact to a few units in the last place. Differentiable in spectrum, sizes and ridge.
    Cost: about 10 passes over the modes per grid point (``KappaTable`` shares them over a large grid),
    O(grid) memory without gradient and O(grid * modes) with.

    Raises ``ValueError`` for bad sizes or ridge, more than one ``Samples`` with a pool, or a pool smaller
    than P.

    >>> from ridgescope.theory.spectra import power_law
    >>> fit = renormalise(power_law(1000, 1.5), Samples(100) @ Features(300), ridge=1e-3)
    >>> bool(abs(fit.kappa2 * (1 - fit.df1 / 100) * (1 - fit.df1 / 300) - 1e-3) < 1e-15)
    True
    """
    sources = _parts(chain)
    for source in sources:
        if isinstance(source, AdditiveNoise):
            spectrum = spectrum.with_bulk(source.trace)
    device = spectrum.eta.device
    lam = nonnegative("ridge", as_float64("ridge", ridge), "pass the lam of the loss, 0 for ridgeless").to(device)
    sized = [source for source in sources if isinstance(source, _Sized)]
    raw = [as_float64("size", source.size).to(device) for source in sized]
    try:
        lam, *raw = torch.broadcast_tensors(lam, *raw)
    except RuntimeError:
        shapes = [tuple(value.shape) for value in (lam, *raw)]
        raise ValueError(f"ridge and sizes have shapes {shapes}; pass shapes that broadcast to one grid") from None
    pools = [size for source, size in zip(sized, raw, strict=True) if isinstance(source, Pool)]
    finite = [size for source, size in zip(sized, raw, strict=True) if not isinstance(source, Pool)]
    stack = torch.stack([size.reshape(-1) for size in finite] or [torch.full_like(lam.reshape(-1), math.inf)])
    pool = _checked_pool(pools, stack)
    kappa = solve_kappa(spectrum.eta, spectrum.counts, spectrum.bulk_trace, lam.reshape(-1), stack, pool)
    df1, df2, d12 = degrees_of_freedom(spectrum, kappa)
    spare = _spare_factors(spectrum, kappa, lam.reshape(-1), stack, pool, df1)
    return _assemble(spectrum, sized, lam, kappa, (df1, df2, d12), spare, stack, pool)


def _checked_pool(pools: list[Tensor], sizes: Tensor) -> Tensor | None:
    if not pools:
        return None
    if len(pools) > 1:
        raise ValueError(f"{len(pools)} pools in one chain; a spectrum is measured on one pool")
    pool = pools[0].reshape(-1)
    worst = (sizes.amin(0) - pool).detach()
    if bool((worst >= 0).any()):
        i = int(worst.argmax())
        raise ValueError(
            f"Pool size {float(pool[i]):g} must exceed the smallest other size {float(sizes[:, i].min()):g}; "
            "enlarge the pool, or drop Pool and Samples when P equals M"
        )
    return pool


def degrees_of_freedom(spectrum: Spectrum, kappa: Float[Tensor, " g"]) -> tuple[Tensor, Tensor, Tensor]:
    """``df1``, ``df2`` and ``df1 - df2`` at each kappa (g), the last without cancellation; at kappa = 0 their
    limits.
    """
    ones = torch.ones_like(spectrum.eta) if spectrum.counts is None else spectrum.counts
    per_kappa = torch.where(kappa > 0, 1 / torch.where(kappa > 0, kappa, 1.0), 0.0) * spectrum.bulk_trace
    sums = mode_sums(spectrum.eta, kappa, (("L", ones), ("LL", ones), ("LU", ones)))
    return sums[0] + per_kappa, sums[1], sums[2] + per_kappa


def mode_sums(
    eta: Float[Tensor, " modes"],
    kappa: Float[Tensor, " g"],
    wanted: tuple[tuple[str, Float[Tensor, " modes"]], ...],
) -> list[Tensor]:
    """Sums ``sum_k w_k prod`` over modes for products of L and U named by strings such as "LU"; each (g).

    Blocked over grid points, so memory is 8 MB per temporary unless a gradient is asked for.
    """
    block = min(len(eta), 2**17)  # also bounds the rounding of one long dot product
    parts = []
    for part in kappa.split(max(1, BLOCK // block)):
        total = [part.new_zeros(len(part)) for _ in wanted]
        for start in range(0, len(eta), block):
            keep = slice(start, start + block)
            factor = _fractions(eta[keep], part[:, None])
            total = [t + _product(factor, n) @ w[keep] for t, (n, w) in zip(total, wanted, strict=True)]
        parts.append(total)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _fractions(eta: Tensor, kappa: Tensor) -> dict[str, Tensor]:
    """L and U for each pair of kappa (g, 1) and eta (b): eta = 0 is never learned, kappa = 0 learns all
    else.
    """
    live = kappa > 0
    total = eta + torch.where(live, kappa, 1.0)
    learned = torch.where(live, eta / total, (eta > 0).to(eta.dtype))
    missed = torch.where(live, kappa / total, (eta == 0).to(eta.dtype))
    if kappa.requires_grad:  # at kappa = 0 the value is a constant, the slope is not
        slope = torch.where(live, 0.0, kappa / torch.where(eta > 0, eta, math.inf))
        learned, missed = learned - slope, missed + slope
    return {"L": learned, "U": missed}


def _product(factor: dict[str, Tensor], name: str) -> Tensor:
    result = factor[name[0]]
    for letter in name[1:]:
        result = result * factor[letter]
    return result


def _spare_factors(
    spectrum: Spectrum, kappa: Tensor, lam: Tensor, sizes: Tensor, pool: Tensor | None, df1: Tensor
) -> Tensor:
    """``1 - df1/n_l`` (S, G) from the spare budget g of the smallest size: nothing cancels."""
    order = sizes.argsort(0)
    ascending = sizes.gather(0, order)
    a = ascending[0]
    finite = torch.isfinite(a)
    base = torch.where(finite, ascending, torch.ones_like(a))  # placeholders where every size is infinite
    live = (kappa > 0) & finite
    s = torch.where(live, lam / torch.where(kappa > 0, kappa, 1.0), torch.ones_like(lam))
    g, _ = spare_budget(s.clamp_max(1), base, pool)
    g = torch.where(kappa > 0, g, (base[0] - df1).clamp_min(0))
    factors = torch.where(torch.isinf(sizes), 1.0, (sizes - base[0] + g) / sizes)
    return torch.where(finite, factors, torch.ones_like(factors))


def _assemble(
    spectrum: Spectrum,
    sized: list[_Sized],
    lam: Tensor,
    kappa: Tensor,
    dof: tuple[Tensor, Tensor, Tensor],
    spare: Tensor,
    sizes: Tensor,
    pool: Tensor | None,
) -> Renormalised:
    df1, df2, d12 = dof
    grid = lam.shape
    plain = [source for source in sized if not isinstance(source, Pool)]
    data = [i for i, source in enumerate(plain) if isinstance(source, Samples)]
    width = [i for i, source in enumerate(plain) if isinstance(source, Features)]
    if len(data) > 1:
        raise ValueError(f"{len(data)} Samples in one chain; pass one, and Features for every other source")
    one = torch.ones_like(kappa)
    spare_p = spare[data[0]] if data else one
    num_samples = sizes[data[0]] if data else one * math.inf
    rho, blocked = _transmission(spare[width], sizes[width], d12)
    # from the far end: every 1/S is known, so kappa before source l is kappa after it times (1 - df1/n_l)
    level, levels = kappa, []
    for source in reversed(sized):
        levels.append(level)
        factor = 1 / (1 - df1 / pool) if isinstance(source, Pool) and pool is not None else None
        level = level * (spare[plain.index(source)] if factor is None else factor)
    kappa1 = kappa * (spare[width].prod(0) if width else one)

    def shaped(value: Tensor) -> Tensor:
        return value.reshape(grid)

    return Renormalised(
        spectrum,
        lam,
        shaped(num_samples),
        shaped(kappa1),
        shaped(kappa),
        tuple(shaped(value) for value in reversed(levels)),
        shaped(df1),
        shaped(df2),
        shaped(d12),
        shaped(spare_p),
        tuple(shaped(spare[i]) for i in width),
        shaped(rho),
        shaped(blocked),
    )


def _transmission(spare: Tensor, sizes: Tensor, d12: Tensor) -> tuple[Tensor, Tensor]:
    """``rho = 1/(1 + d12 sum 1/(n_l o_l))`` and ``1 - rho``, multiplied out: a saturated layer gives rho =
    0.
    """
    if len(sizes) == 0:
        return torch.ones_like(d12), torch.zeros_like(d12)
    through = spare.prod(0)
    others = [spare[[j for j in range(len(spare)) if j != i]].prod(0) / sizes[i] for i in range(len(spare))]
    stopped = d12 * torch.stack(others).sum(0)
    total = through + stopped
    # two layers saturated at once, or d12 = 0: the limit is rho = 0 (or multiplies nothing)
    safe = torch.where(total > 0, total, 1.0)
    rho = torch.where(total > 0, through / safe, 0.0)
    return rho, torch.where(total > 0, stopped / safe, 1.0)
