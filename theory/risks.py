"""Test and train risk of a renormalised regression, split by the source of the variance.

Symbols (all at kappa_2): b = sum c^2 U^2, t = sum c^2 L U, s2 noise; gamma_1, gamma_2, rho, d12 of the chain.

    E_test  = (b + (1-rho) t + s2)/(1 - gamma_1),        E_train = (1 - df1/P)^2 E_test

Main effects and interactions of data X, features F and noise are all >= 0 and sum to the excess risk.
Sources: arXiv:2110.03922 and arXiv:2006.13198 (kernel), arXiv:2311.14646 and arXiv:2405.00592 (features); the
split into six is derived in docs/theory/risks.md. Shapes: every field has the grid's shape; risks are summed
over outputs and include the noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Real, as_float64, positive
from ridgescope.theory.renormalisation import Renormalised, Samples, Source, mode_sums, renormalise
from ridgescope.theory.spectra import Spectrum, Target


@dataclass(frozen=True)
class Risks:
    """Risks on a grid. ``bias2 + noise`` and the six variances sum to ``test``. Where ``test`` is inf the
    interactions
    with the features are inf - inf, hence nan.

    ``var_F`` features alone, ``var_X`` data alone, ``var_XF`` their interaction, ``var_noise`` label noise
    that survives averaging over features, ``var_Fnoise`` the part that does not. ``ens_inf`` is the test risk
    of an infinite ensemble over features on the same data.
    """

    scale: Renormalised
    noise: Float[Tensor, " *grid"]
    test: Float[Tensor, " *grid"]
    train: Float[Tensor, " *grid"]
    bias2: Float[Tensor, " *grid"]
    var_F: Float[Tensor, " *grid"]
    var_X: Float[Tensor, " *grid"]
    var_XF: Float[Tensor, " *grid"]
    var_noise: Float[Tensor, " *grid"]
    var_Fnoise: Float[Tensor, " *grid"]
    ens_inf: Float[Tensor, " *grid"]

    @property
    def excess(self) -> Float[Tensor, " *grid"]:
        """Test risk without the label noise."""
        return self.test - self.noise

    def ensemble(self, members: int) -> Float[Tensor, " *grid"]:
        """Test risk of the average of ``members`` feature draws fitted to the same data."""
        return self.crossed(members, 1)

    def ensemble_train(self, members: int) -> Float[Tensor, " *grid"]:
        """Train risk of that average."""
        return self.scale.spare_samples**2 * self.ensemble(members)

    def bag(self, members: int) -> Float[Tensor, " *grid"]:
        """Test risk of the average over ``members`` independent data sets with the same features."""
        return self.crossed(1, members)

    def crossed(self, feature_draws: int, data_sets: int) -> Float[Tensor, " *grid"]:
        """Test risk of the average over every pair of ``feature_draws`` draws and ``data_sets`` data sets.

        s2 + b + Var_F/E + (Var_X + Var_noise)/B + (Var_XF + Var_Fnoise)/(E B).
        """
        e, b = _count("feature_draws", feature_draws), _count("data_sets", data_sets)
        data = (self.var_X + self.var_noise) / b
        return self.noise + self.bias2 + self.var_F / e + data + (self.var_XF + self.var_Fnoise) / (e * b)

    def independent(self, members: int) -> Float[Tensor, " *grid"]:
        """Test risk of an average of members that share neither features nor data."""
        return self.noise + self.bias2 + (self.test - self.noise - self.bias2) / _count("members", members)


def _count(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1; pass the number of members")
    return value


def risks(spectrum: Spectrum, target: Target, chain: Source, ridge: Real) -> Risks:
    """Solve ``chain`` on ``spectrum`` and evaluate every risk on the grid of its sizes and ``ridge``.

    Deterministic equivalent: relative corrections are O(1/P), typically 0.5-3 % at P = 100 on Gaussian data,
    and larger near P = N or P = rank at small ridge. Exact limits are returned where they exist: inf at an
    interpolation peak, 0/0 limits of ridgeless fits. Arithmetic accurate to 1e-14. Differentiable in
    spectrum, target, sizes and ridge. Cost as ``renormalise``, plus one pass.

    Raises ``ValueError`` as ``renormalise``, and for a target of another length than the spectrum.

    >>> from ridgescope.theory import Samples, power_law, power_law_target
    >>> result = risks(power_law(1000, 1.5), power_law_target(1000, 2.0, noise=0.1), Samples(100), 1e-2)
    >>> bool((result.train / result.test - (1e-2 / result.scale.kappa1) ** 2).abs() < 1e-15)
    True
    """
    return risks_at(renormalise(spectrum, chain, ridge), target)


def risks_at(scale: Renormalised, target: Target) -> Risks:
    """The risks of ``target`` for a chain already solved: one pass over the modes."""
    target.matches(scale.spectrum)
    grid = scale.kappa2.shape
    sums = mode_sums(scale.spectrum.eta, scale.kappa2.reshape(-1), (("UU", target.c2), ("LU", target.c2)))
    b, t = (value.reshape(grid) for value in sums)
    s2 = target.s2.expand(grid)
    var_f = scale.blocked * t
    open1, open2 = scale.open1, scale.open2
    test = _over(b + var_f + s2, open1)
    ens_inf = _over(b + s2, open2)
    # at an interpolation peak the spare budget is 0 and the train risk with it, though the test risk is inf
    train = torch.where(scale.spare_samples > 0, scale.spare_samples**2 * test, 0.0)
    var_x, var_noise = _over(b * scale.gamma2, open2), _over(s2 * scale.gamma2, open2)
    interaction = torch.where(scale.gap > 0, scale.gap, 0.0)
    var_xf = _over(var_f * scale.gamma1, open1) + _over(_over(b * interaction, open1), open2)
    var_fnoise = _over(_over(s2 * interaction, open1), open2)
    # an infinite risk leaves inf - inf to the interactions
    undefined = torch.where(torch.isinf(test), torch.nan, 0.0)
    return Risks(
        scale,
        s2,
        test,
        train,
        b,
        var_f,
        var_x,
        var_xf + undefined,
        var_noise,
        var_fnoise + undefined,
        ens_inf,
    )


def _over(value: Tensor, open_share: Tensor) -> Tensor:
    """``value / open_share`` where 0/0 is 0 (the limit from above) and x/0 is inf."""
    safe = torch.where(open_share > 0, open_share, 1.0)
    closed = torch.where(value > 0, torch.inf, 0.0)
    return torch.where(open_share > 0, value / safe, closed)


def centred_risks(spectrum: Spectrum, target: Target, num_samples: Real, ridge: Real) -> Float[Tensor, " *grid"]:
    """Test risk with an unpenalised intercept (features and targets centred by their training means).

    (1 + 1/P) times the theory at P - 1 samples and ridge lam P/(P-1), on the spectrum without its constant
    mode. Derived (docs); within 0.3 % at P = 120 where ignoring the centring is off by 1.3 %.
    """
    p = positive("num_samples - 1", as_float64("num_samples", num_samples) - 1) + 1
    inner = risks(spectrum, target, Samples(p - 1), as_float64("ridge", ridge) * p / (p - 1))
    return (1 + 1 / p) * inner.test
