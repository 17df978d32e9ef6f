"""What a crossed design says of the risk: every initialisation seed trained on every draw of the training set.

With residuals r(s, d) = f - y of seed s and draw d, four cross risks E r(s, d) r(s', d') are averages over pairs,
so that no network meets itself where it must not: unbiased for any number of networks, with some missing too.

    total      s = s', d = d'    the risk             same_seed  s = s', d != d'    bias^2 + noise + seeds
    same_draw  s != s', d = d'   bias^2 + noise + draws    neither   both differ     bias^2 + noise

Their differences are the terms, which add up to the risk. The law of ensembles and bags follows from the same four:
the average over E seeds has risk same_draw + (total - same_draw)/E, over B draws same_seed + (total - same_seed)/B.

Letters: n networks, T test points, C outputs, g groups of test points, S seeds, D draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from scipy import special
from torch import Tensor

from ridgescope.analysis.resample import Estimate

CROSS_RISKS = ("total", "same_seed", "same_draw", "neither")

# each quantity as a combination of the four cross risks, in that order
TERMS: dict[str, tuple[int, int, int, int]] = {
    "bias": (0, 0, 0, 1),
    "data variance": (0, 0, 1, -1),
    "initialisation variance": (0, 1, 0, -1),
    "interaction": (1, -1, -1, 1),
    "risk": (1, 0, 0, 0),
}

Combination = Sequence[int | float]


def ensemble(members: int) -> Combination:
    """The average over ``members`` seeds on one draw, as a combination of the cross risks."""
    return (1 / members, 0, 1 - 1 / members, 0)


def bag(members: int) -> Combination:
    """The average over ``members`` draws with one seed."""
    return (1 / members, 1 - 1 / members, 0, 0)


@dataclass(frozen=True)
class CrossedEstimate(Estimate):
    """An `Estimate` with the ``parts`` of its squared error: from seeds, draws and test points."""

    parts: tuple[float, float, float]
    at_these: Estimate  # of these draws and test points and no others: only the seeds are random


@dataclass(frozen=True)
class CrossRisks:
    """The four cross risks and bootstrap replicates (b, 4) of each source: seeds, draws and test points resampled."""

    values: Float64[Tensor, " four"]
    replicates: tuple[Tensor, ...]
    num_seeds: int
    num_draws: int
    num_networks: int

    def estimate(self, combination: Combination, confidence: float = 0.90) -> CrossedEstimate:
        """Value, standard error and interval of a combination of the cross risks.

        The variances over seeds, draws and test points add; what depends on several of them is counted for each, so the
        error is conservative: 1.0 to 1.4 times the spread that random-feature regression shows, twice at the worst.
        Student's t with Satterthwaite's degrees of freedom.
        """
        weights = torch.tensor(combination, dtype=torch.float64)
        value = float(self.values @ weights)
        levels = (self.num_seeds, self.num_draws, None)
        parts, freedom = [], 0.0
        for replicates, count in zip(self.replicates, levels, strict=True):
            # resampling n levels gives (n - 1)/n of the variance
            factor = count / (count - 1) if count else 1.0
            parts.append(float((replicates @ weights).var()) * factor)
            freedom += parts[-1] ** 2 / (count - 1) if count else 0.0
        variance = sum(parts)
        se = math.sqrt(variance)
        quantile = float(special.stdtrit(min(variance**2 / freedom, 1e6), (1 + confidence) / 2)) if freedom else 1.645
        of_seeds = math.sqrt(parts[0])
        half = float(special.stdtrit(self.num_seeds - 1, (1 + confidence) / 2)) * of_seeds
        at_these = Estimate(value, of_seeds, value - half, value + half)
        whole = value, se, value - quantile * se, value + quantile * se
        return CrossedEstimate(*whole, (parts[0], parts[1], parts[2]), at_these)

    def terms(self) -> dict[str, CrossedEstimate]:
        """bias (with noise), data and initialisation variance, interaction, and the risk they add up to."""
        return {name: self.estimate(combination) for name, combination in TERMS.items()}

    def networks_for(
        self, precision: int | float, combinations: Sequence[Combination] | None = None, most: int = 64
    ) -> tuple[int, int] | None:
        """The design (seeds, draws) of fewest networks whose ``combinations`` (by default all terms) have a standard
        error below ``precision`` times the risk; None where ``most`` seeds and draws do not reach it, as where the test
        points are too few.

        From the variances that were seen, so it is itself uncertain by a factor of about 1.5 for eight seeds and draws.
        """
        if not precision > 0:
            raise ValueError(f"precision={precision:g} is a share of the risk; pass a positive one, e.g. 0.01")
        allowed = (precision * float(self.values[0])) ** 2
        parts = [self.estimate(one).parts for one in combinations or list(TERMS.values())]
        best: tuple[int, int] | None = None
        for seeds in range(3, most + 1):
            for draws in range(3, most + 1):
                if best is not None and seeds * draws >= best[0] * best[1]:
                    break
                by_seed, by_draw = self.num_seeds / seeds, self.num_draws / draws
                if all(s * by_seed + d * by_draw + p <= allowed for s, d, p in parts):
                    best = seeds, draws
                    break
        return best


def cross_risks(
    residuals: Float64[Tensor, "n t c"],
    seeds: Sequence[int],
    draws: Sequence[int],
    *,
    generator: torch.Generator,
    replicates: int = 300,
    groups: int = 40,
) -> CrossRisks:
    """The four cross risks of ``n`` networks on the same test points, summed over outputs, with bootstrap replicates.

    ``seeds`` and ``draws`` name each network's initialisation and training set; a network that is missing from the
    grid is left out of every pair. Cost n^2 T C + 3 b n^2 g; memory n^2 g numbers.

    Raises ``ValueError`` with fewer than three seeds or draws, a repeated pair, no pair that differs in both, or
    residuals that are not finite.
    """
    n, points, _ = residuals.shape
    if len(seeds) != n or len(draws) != n:
        raise ValueError(f"{n} networks but {len(seeds)} seeds and {len(draws)} draws; name one of each per network")
    if not bool(torch.isfinite(residuals).all()):
        raise ValueError("residuals hold NaN or infinity; leave out networks that diverged")
    seed, num_seeds = _codes(seeds)
    draw, num_draws = _codes(draws)
    if num_seeds < 3 or num_draws < 3:
        raise ValueError(
            f"{num_seeds} seeds and {num_draws} draws give no terms with errors; train with design=crossed and at "
            "least num_seeds=3 num_draws=3 (8 and 8 for errors of about a quarter of a variance)"
        )
    if len(set(zip(seed.tolist(), draw.tolist(), strict=True))) < n:
        raise ValueError("two networks have the same seed and draw; pass each pair once")
    groups = min(groups, points)
    member = torch.arange(points) * groups // points
    grams = residuals.new_zeros(groups, n, n)
    for group in range(groups):
        flat = residuals[:, member == group].flatten(1)
        grams[group] = flat @ flat.T
    same_seed, same_draw = seed[:, None] == seed, draw[:, None] == draw
    masks = [same_seed & same_draw, same_seed & ~same_draw, ~same_seed & same_draw, ~same_seed & ~same_draw]
    if not all(bool(mask.any()) for mask in masks):
        raise ValueError("too many networks of the grid are missing: no pair shares only its seed, or only its draw")
    classes = [_PairClass(mask, seed, draw, grams, points) for mask in masks]
    counts = torch.bincount(member, minlength=groups).double() / points

    def means(by_seed: Tensor, by_draw: Tensor, by_group: Tensor) -> Tensor:
        scale = by_group @ counts
        return torch.stack([one.mean(by_seed, by_draw, by_group) for one in classes]) / scale

    ones = [torch.ones(size, dtype=torch.float64) for size in (num_seeds, num_draws, groups)]
    found: list[Tensor] = []
    for factor in range(3):
        rows = []
        for weights in _resampled(len(ones[factor]), replicates, generator):
            row = means(*[weights if i == factor else one for i, one in enumerate(ones)])
            if bool(torch.isfinite(row).all()):  # a resample of one level alone has no pair that differs
                rows.append(row)
        found.append(torch.stack(rows))
    return CrossRisks(means(*ones), tuple(found), num_seeds, num_draws, n)


class _PairClass:
    """Pairs of networks of one kind; a level that both share counts once, levels that differ once each."""

    def __init__(self, mask: Tensor, seed: Tensor, draw: Tensor, grams: Tensor, points: int) -> None:
        self.first, self.second = mask.nonzero(as_tuple=True)
        self.values = grams[:, self.first, self.second] / points  # (g, pairs)
        self.seed, self.draw = seed, draw

    def _weight(self, level: Tensor, weights: Tensor) -> Tensor:
        one, other = level[self.first], level[self.second]
        return weights[one] * torch.where(one == other, torch.ones_like(weights[one]), weights[other])

    def mean(self, by_seed: Tensor, by_draw: Tensor, by_group: Tensor) -> Tensor:
        pair = self._weight(self.seed, by_seed) * self._weight(self.draw, by_draw)
        return (by_group @ self.values) @ pair / pair.sum()


def _resampled(count: int, replicates: int, generator: torch.Generator) -> Tensor:
    picks = torch.randint(count, (replicates, count), generator=generator)
    return torch.stack([torch.bincount(row, minlength=count) for row in picks]).double()


def _codes(labels: Sequence[int]) -> tuple[Tensor, int]:
    levels = sorted(set(labels))
    return torch.tensor([levels.index(label) for label in labels]), len(levels)
