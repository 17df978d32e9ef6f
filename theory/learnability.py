"""How much of each mode ridge regression learns, and how that fluctuates over training sets.

Symbols: v_k = E_x[phi_k f(x)] learned coefficient for one training set of P samples, c_k its target,
L_k = eta_k/(eta_k+kappa), U_k = 1 - L_k. Infinite width. Shapes: modes (D), one (P, lam).

    E v_k = L_k c_k,      Var v_k = (L_k^2/P) (E_test + U_k^2 c_k^2/(1-gamma))
    Cov(v_j, v_k) = L_j L_k U_j U_k c_j c_k/(P (1-gamma))

Learnabilities and the first variance term: arXiv:2110.03922. The own-mode term and the covariance are the
second Wick pairing of real Gaussian data (derived in docs/theory/learnability.md): O(1) for a mode that
dominates the bias.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Real, as_float64, same_length
from ridgescope.theory.renormalisation import Renormalised, Samples, renormalise
from ridgescope.theory.risks import risks_at
from ridgescope.theory.spectra import Spectrum, Target


@dataclass(frozen=True)
class Learned:
    """Statistics over training sets of the learned coefficients, of modes with multiplicity one.

    ``learnability`` L_k; ``mean`` and ``variance`` of v_k (D). The covariance is ``diag(variance)`` off which
    modes covary as ``outer(direction, direction)`` (``covariance`` builds it). ``var_X`` is the data variance
    of the risk with its own-mode correction: better where df2 = O(1), no uniform improvement elsewhere.
    """

    scale: Renormalised
    learnability: Float[Tensor, " modes"]
    mean: Float[Tensor, " modes"]
    variance: Float[Tensor, " modes"]
    direction: Float[Tensor, " modes"]
    var_X: Float[Tensor, ""]

    def covariance(self) -> Float[Tensor, "modes modes"]:
        """The full covariance matrix of v: D^2 numbers."""
        outer = self.direction[:, None] * self.direction
        return outer - torch.diag(self.direction.square()) + torch.diag(self.variance)


def learned_modes(
    spectrum: Spectrum,
    coefficients: Float[Tensor, " modes"],
    *,
    num_samples: Real,
    ridge: Real,
    noise: Real = 0.0,
) -> Learned:
    """Mean, variance and covariance of the learned coefficients for signed target ``coefficients`` (c_k).

    Conservation: the learnabilities sum to df1 = P (1 - lam/kappa) <= P. Accuracy on Gaussian data 1-2 % at P
    = 100. O(D) after the solve. Differentiable.

    Raises ``ValueError`` for multiplicities (list the modes instead), other lengths, or gamma = 1.

    >>> from ridgescope.theory import power_law
    >>> c = torch.ones(500, dtype=torch.float64)
    >>> fit = learned_modes(power_law(500, 1.5), c, num_samples=50, ridge=0.0)
    >>> round(float(fit.learnability.sum()), 9)
    50.0
    """
    if spectrum.counts is not None:
        raise ValueError("learned_modes needs single modes, got multiplicities; list each mode of a block")
    c = same_length("coefficients", as_float64("coefficients", coefficients), "the spectrum", len(spectrum.eta))
    scale = renormalise(spectrum, Samples(num_samples), ridge)
    if scale.kappa2.ndim:
        raise ValueError(f"learned_modes takes one (P, lam), got a grid {tuple(scale.kappa2.shape)}; loop over it")
    if float(scale.open2) <= 0:
        raise ValueError(f"gamma = 1 at num_samples={float(scale.num_samples):g} = rank, ridge 0; pass ridge > 0")
    result = risks_at(scale, Target(c.square(), noise))
    total = spectrum.eta + scale.kappa2
    learned = torch.where(total > 0, spectrum.eta / torch.where(total > 0, total, 1.0), 0.0)
    missed = torch.where(total > 0, scale.kappa2 / torch.where(total > 0, total, 1.0), 1.0)
    direction = learned * missed * c / (scale.num_samples * scale.open2).sqrt()
    variance = learned.square() * result.test / scale.num_samples + direction.square()
    var_x = result.var_X + direction.square().sum()
    return Learned(scale, learned, learned * c, variance, direction, var_x)
