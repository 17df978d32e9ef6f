"""The one equation of the theory: degrees of freedom that fit the sample and feature budget.

Symbols: eta_k eigenvalues with multiplicities m_k, kappa effective ridge, n_l sizes (samples, widths) and a
the smallest of them, M pool size, L = eta/(eta+kappa), U = 1-L, df1 = sum m L, d12 = sum m L U, tau trace of
a bulk of infinitely many infinitesimal modes, which adds tau/kappa to df1 and to d12.
Shapes: modes (D), sizes (S, G) with G independent problems solved together.

The equation is ``ridge = kappa prod_l (1 - df1/n_l) / (1 - df1/M)`` on the branch df1 <= a. It is solved in
the form F(log kappa) = df1 - x = 0, x = a - g the root of prod(1 - x/n_l)/(1 - x/M) = ridge/kappa, because F
falls monotonically and because df1 - a can be summed without cancellation: count the modes above kappa, add
their complements. Everything that cancels later (1 - df1/n_l) is read off g instead.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**17  # numbers per temporary in a pass over the spectrum: stays in cache
STEP = 4e-16  # relative step at which the iteration has reached double precision


@dataclass(frozen=True)
class Modes:
    """A spectrum as the solver sees it: descending eigenvalues, float64, no gradient."""

    eigenvalues: Tensor  # (D)
    multiplicities: Tensor | None  # (D), None when all are one
    bulk: Tensor  # ()

    @property
    def rank(self) -> float:
        live = int(_count_above(self.eigenvalues, self.eigenvalues.new_zeros(1)))
        return float(live if self.multiplicities is None else self.multiplicities[:live].sum())

    @property
    def counts(self) -> Tensor:
        return torch.ones_like(self.eigenvalues) if self.multiplicities is None else self.multiplicities


def sorted_modes(eigenvalues: Tensor, multiplicities: Tensor | None, bulk: Tensor) -> Modes:
    """Detach, and sort descending unless already sorted (a sort costs more than a solve)."""
    eta = eigenvalues.detach()
    counts = None if multiplicities is None else multiplicities.detach()
    if bool((eta[1:] > eta[:-1]).any()):
        eta, order = torch.sort(eta, descending=True)
        counts = None if counts is None else counts[order]
    return Modes(eta, counts, bulk.detach())


def spare_budget(s: Tensor, sizes: Tensor, pool: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``g = a - x`` with ``prod_l (1 - x/n_l) / (1 - x/M) = s``, and ``q = dlog s / dlog g``.

    ``s`` (G) in [0, 1], ``sizes`` (S, G) ascending, ``pool`` (G) >= a. Differentiable: closed form for up to
    two sizes, Newton in log g (convex, monotone from the second step) with two differentiated steps beyond
    that.
    """
    a = sizes[0]
    gaps = sizes[1:] - a
    if len(sizes) <= 2:
        # (g/a) (1 - a/n + g/n) = s (1 - a/M + g/M): a quadratic, written so that nothing cancels
        inverse_n = 1 / sizes[1] if len(sizes) == 2 else torch.zeros_like(a)
        inverse_m = torch.zeros_like(a) if pool is None else 1 / pool
        free = torch.where(inverse_n > 0, (gaps[0] if len(gaps) else a) * inverse_n, torch.ones_like(a))
        pool_free = torch.ones_like(a) if pool is None else (pool - a) * inverse_m
        half_b = (free - s * a * inverse_m) / 2
        four_ac = s * a * inverse_n * pool_free
        # a double root at s = 0 has an infinite slope: keep it out of the gradient
        root = torch.where(four_ac + half_b**2 > 0, (four_ac + half_b**2).clamp_min(1e-300).sqrt(), 0.0)
        den = torch.where(half_b + root > 0, half_b + root, 1.0)
        g = torch.where(half_b + root > 0, s * a * pool_free / den, torch.zeros_like(a))
        backward = (root - half_b) / torch.where(inverse_n > 0, inverse_n, 1.0)
        g = torch.where((half_b < 0) & (inverse_n > 0), backward, g)
    else:
        if pool is not None:
            raise ValueError(f"a pool correction with {len(sizes)} sizes is not defined; pass one width at most")
        g = _spare_budget_newton(s, a, sizes[1:], gaps)
    q = 1 + torch.nan_to_num(g / (gaps + g)).sum(0)
    if pool is not None:
        q = q - torch.nan_to_num(g / (pool - a + g))
    return g, q


def _spare_budget_newton(s: Tensor, a: Tensor, others: Tensor, gaps: Tensor) -> Tensor:
    """Newton for three or more sizes; log of the left side is convex in log g, so it cannot diverge."""
    live = s > 0
    safe_s = torch.where(live, s, torch.ones_like(s))

    def step(y: Tensor, target: Tensor, a: Tensor, others: Tensor, gaps: Tensor) -> Tensor:
        g = y.exp()
        ratio = torch.where(torch.isinf(others), 1.0, (gaps + g) / others)
        slope = 1 + torch.nan_to_num(g / (gaps + g)).sum(0)
        return y - (y - a.log() + ratio.log().sum(0) - target.log()) / slope

    with torch.no_grad():
        y = (a * safe_s).log()
        for _ in range(200):
            new = step(y, safe_s, a, others, gaps)
            done = bool(((new - y).abs() <= STEP * y.abs().clamp_min(1)).all())
            y = new
            if done:
                break
    # at the solution two more steps carry the exact first and second derivatives
    y = step(step(y, safe_s, a, others, gaps), safe_s, a, others, gaps)
    return torch.where(live, y.exp(), torch.zeros_like(y))


def split_sums(modes: Modes, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_{eta<=kappa} m L - sum_{eta>kappa} m U`` and ``d12``, both (G): one pass over the spectrum."""
    low, curvature = modes.bulk / kappa, modes.bulk / kappa
    block = max(1, BLOCK // len(kappa))
    column = kappa[:, None]
    for start in range(0, len(modes.eigenvalues), block):
        eta = modes.eigenvalues[start : start + block]
        inverse = (eta + column).reciprocal_()
        large = eta > column
        # L below kappa, U above it: the smaller of the two, never one minus the other
        part = torch.where(large, column, eta).mul_(inverse)
        product = torch.where(large, eta, column).mul_(inverse).mul_(part)
        signed = torch.where(large, -part, part)
        if modes.multiplicities is None:
            low, curvature = low + signed.sum(1), curvature + product.sum(1)
        else:
            counts = modes.multiplicities[start : start + block]
            low, curvature = low + signed @ counts, curvature + product @ counts
    return low, curvature


def _bracket(modes: Modes, ridge: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on kappa. Lower: j eta_j/(eta_j+kappa) <= a. Upper: df1 <= trace/kappa; ridgeless: a - j <=
    tail_j/kappa.
    """
    eta, counts = modes.eigenvalues, modes.counts
    cumulative = counts.cumsum(0)
    # tails summed from the small end: trace minus a cumulative sum would cancel to zero on wide spectra
    tail_from = (eta * counts).flip(0).cumsum(0).flip(0)
    tails = torch.cat([tail_from[1:], tail_from.new_zeros(1)]) + modes.bulk
    a = sizes[0][:, None]
    below = cumulative < a
    lower = torch.where(below, -math.inf, eta * (cumulative / a - 1)).amax(1)
    lower = torch.maximum(torch.maximum(lower, ridge), modes.bulk / sizes[0])
    trace = tail_from[0] + modes.bulk
    upper = ridge + trace * (1 / sizes).sum(0)
    free = torch.where(below, tails / torch.where(below, a - cumulative, 1.0), math.inf).amin(1)
    upper = torch.where(ridge == 0, torch.minimum(upper, free), upper)
    margin = 1e-10  # far above the rounding of the sums; only the bracket widens, not the answer
    return lower * (1 - margin), torch.maximum(upper, lower) * (1 + margin)


def _coarse_bracket(modes: Modes, ridge: Tensor, sizes: Tensor, pool: Tensor | None) -> tuple[Tensor, Tensor]:
    """A tight bracket from two small spectra: runs of a long sorted list rounded down, and rounded up.

    kappa grows with every eigenvalue, so the answer lies between the two. Costs two gathers of ~3000 numbers.
    """
    total = len(modes.eigenvalues)
    edges = [torch.arange(1025, dtype=torch.float64)]
    edges.append(1024 * torch.exp(torch.arange(1, 1 + math.ceil(math.log(total / 1024) / 0.005)) * 0.005))
    index = torch.cat(edges).round().clamp_max(total).unique().to(torch.int64).to(modes.eigenvalues.device)
    first, last = index[:-1], index[1:] - 1
    if modes.multiplicities is None:
        counts = (index[1:] - index[:-1]).to(torch.float64)
    else:
        cumulative = torch.cat([modes.bulk.new_zeros(1), modes.multiplicities.cumsum(0)])
        counts = cumulative[index[1:]] - cumulative[index[:-1]]
    eta = modes.eigenvalues
    low = _solve(Modes(eta[last], counts, modes.bulk), ridge, sizes, pool)
    high = _solve(Modes(eta[first], counts, modes.bulk), ridge, sizes, pool)
    return low * (1 - 1e-10), high * (1 + 1e-10)


def _solve(modes: Modes, ridge: Tensor, sizes: Tensor, pool: Tensor | None) -> Tensor:
    """Safeguarded Newton in log kappa on ``G`` problems (no gradient); all sizes[0] finite."""
    kappa = torch.zeros_like(ridge)
    rank = math.inf if float(modes.bulk) > 0 else modes.rank
    # ridgeless with more budget than modes: df1 = rank < a is met only at kappa = 0; without any mode kappa =
    # ridge
    todo = ((ridge > 0) | (rank > sizes[0])).nonzero().squeeze(1)
    if rank == 0:
        return ridge.clone()
    for part in todo.split(128) if len(todo) else ():
        kappa[part] = _newton(modes, ridge[part], sizes[:, part], None if pool is None else pool[part])
    return kappa


def _newton(modes: Modes, ridge: Tensor, sizes: Tensor, pool: Tensor | None) -> Tensor:
    long = len(modes.eigenvalues) > 20_000
    low, high = _coarse_bracket(modes, ridge, sizes, pool) if long else _bracket(modes, ridge, sizes)
    if long and not bool((low > 0).all()):
        # rounding down may cost rank, and then the small spectrum has the trivial solution
        low = torch.where(low > 0, low, _bracket(modes, ridge, sizes)[0])
    kappa = (low * high).sqrt()
    active = torch.arange(len(kappa), device=kappa.device)
    counts = modes.counts if modes.multiplicities is not None else None
    cumulative = None if counts is None else torch.cat([modes.bulk.new_zeros(1), counts.cumsum(0)])
    for _ in range(200):
        k, size, lam = kappa[active], sizes[:, active], ridge[active]
        g, q = spare_budget((lam / k).clamp_max(1), size, None if pool is None else pool[active])
        above = _count_above(modes.eigenvalues, k)
        above = above.to(torch.float64) if cumulative is None else cumulative[above]
        partial, d12 = split_sums(modes, k)
        excess = partial + (above - size[0]) + g
        step = excess / (d12 + g / q).clamp_min(1e-300)
        low[active] = torch.where(excess >= 0, k, low[active])
        high[active] = torch.where(excess <= 0, k, high[active])
        new = k * step.clamp(-700, 700).exp()
        outside = ~((new >= low[active]) & (new <= high[active]))
        new = torch.where(outside, (low[active] * high[active]).sqrt(), new)
        kappa[active] = new
        width = (high[active] - low[active]) / low[active].clamp_min(1e-300)
        active = active[((new - k).abs() > STEP * k) & (width > 4 * STEP)]
        if len(active) == 0:
            return kappa
    worst = active[0]
    raise RuntimeError(
        f"kappa not converged for ridge={ridge[worst]:.3e}, sizes={sizes[:, worst].tolist()}: bracket "
        f"[{low[worst]:.17e}, {high[worst]:.17e}] after 200 steps; please report this spectrum"
    )


def _count_above(descending: Tensor, threshold: Tensor) -> Tensor:
    """How many entries exceed each threshold, by bisection (torch.searchsorted would copy the reversed
    list).
    """
    low, high = torch.zeros_like(threshold, dtype=torch.int64), len(descending) * torch.ones_like(threshold)
    high = high.to(torch.int64)
    for _ in range(len(descending).bit_length()):
        middle = (low + high) // 2
        above = (low < high) & (descending[middle.clamp_max(len(descending) - 1)] > threshold)
        low, high = torch.where(above, middle + 1, low), torch.where(above, high, middle)
    return low


class _Kappa(torch.autograd.Function):
    """The root, with derivatives of any order from the implicit function theorem."""

    @staticmethod
    def forward(
        eta: Tensor, counts: Tensor | None, bulk: Tensor, ridge: Tensor, sizes: Tensor, pool: Tensor | None
    ) -> Tensor:
        kappa = torch.empty_like(ridge)
        infinite = torch.isinf(sizes[0])
        kappa[infinite] = ridge[infinite]  # no finite size: nothing renormalises
        some = ~infinite
        if bool(some.any()):
            modes = sorted_modes(eta, counts, bulk)
            kappa[some] = _solve(modes, ridge[some], sizes[:, some], None if pool is None else pool[some])
        return kappa

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        eta, counts, bulk, _, sizes, pool = inputs
        if pool is not None and pool.requires_grad:
            raise ValueError("the pool size has no gradient; pass it detached")
        ctx.save_for_backward(eta, counts, bulk, sizes, pool, output)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        eta, counts, bulk, sizes, pool, kappa = ctx.saved_tensors
        m = torch.ones_like(eta) if counts is None else counts
        positive = kappa > 0
        safe = torch.where(positive, kappa, 1.0)[:, None]
        learned = torch.where(positive[:, None], eta / (eta + safe), (eta > 0).to(eta.dtype))
        missed = torch.where(positive[:, None], safe / (eta + safe), 0.0)
        per_kappa = torch.where(positive, 1 / safe[:, 0], 0.0)
        df1 = learned @ m + bulk * per_kappa
        d12 = (learned * missed) @ m + bulk * per_kappa
        o, loss_of_one = _factors_and_slope(df1, sizes, pool)
        # implicit equation E = kappa prod(o) - ridge = 0; dE/dkappa has no division by zero at ridge = 0
        slope = o.prod(0) + d12 * loss_of_one if pool is None else o.prod(0) / (1 - df1 / pool) + d12 * loss_of_one
        v = grad / slope
        w = v * loss_of_one
        grads = [
            (w[:, None] * missed**2).sum(0) * m,
            None if counts is None else ((w * kappa)[:, None] * learned).sum(0),
            (w * positive).sum(),
            v,
            None,
            None,
        ]
        if ctx.needs_input_grad[4]:
            scale = -v * kappa * df1 * (1 if pool is None else 1 / (1 - df1 / pool))
            grads[4] = torch.stack([scale * _others(o, i) / sizes[i] ** 2 for i in range(len(sizes))])
        return tuple(grads)


def _others(o: Tensor, i: int) -> Tensor:
    return o[[j for j in range(len(o)) if j != i]].prod(0)


def _factors_and_slope(df1: Tensor, sizes: Tensor, pool: Tensor | None) -> tuple[Tensor, Tensor]:
    """``o_l = 1 - df1/n_l`` and ``-d(prod o / o_M)/d df1``."""
    o = 1 - df1 / sizes
    slope = sum((_others(o, i) / sizes[i] for i in range(len(sizes))), torch.zeros_like(df1))
    if pool is None:
        return o, slope
    spare = 1 - df1 / pool
    return o, slope / spare - o.prod(0) / (pool * spare**2)


def solve_kappa(
    eta: Tensor, counts: Tensor | None, bulk: Tensor, ridge: Tensor, sizes: Tensor, pool: Tensor | None = None
) -> Tensor:
    """kappa (G) for validated float64 inputs: eta (D), counts (D), bulk (), ridge (G), sizes (S, G), pool
    (G).

    Accurate to a few units in the last place, whatever the spectrum. ``ridge = 0`` is the limit from above,
    and is 0 where the rank does not exceed the smallest size. Derivatives of every order, but for ``pool``.
    One pass over the spectrum per step: 5-15 steps below 20 000 modes, about 4 above, where two short spectra
    give the bracket.
    """
    return _Kappa.apply(eta, counts, bulk, ridge, sizes.sort(0).values, pool)
