"""Random-matrix theory of ridge regression on kernels and random features, as pure float64 functions."""

from ridgescope.theory.acting import (
    Acting,
    acting_ridge,
)
from ridgescope.theory.certificate import Certificate, certificate
from ridgescope.theory.controls import (
    control_pool,
)
from ridgescope.theory.curves import (
    optimal_ridge,
    tuned_learning_curve,
)
from ridgescope.theory.estimators import (
    KappaEstimate,
    KernelRidgeFit,
    ResolventEstimate,
    independent_outputs,
    kappa_from_risks,
    kernel_ridge,
    kernel_ridge_fit,
    pool_kappa_errors,
    resolvent_estimate,
)
from ridgescope.theory.gradient_flow import (
    FlowRisks,
    KernelFlow,
    flow_risks,
    kernel_flow,
)
from ridgescope.theory.iterative import IterativeSolution, Nystrom, conjugate_gradients, nystrom
from ridgescope.theory.lanczos import Interval, StochasticResolvent, stochastic_resolvent
from ridgescope.theory.learnability import (
    Learned,
    learned_modes,
)
from ridgescope.theory.left_out import (
    LeftOutEstimate,
    LeftOutRisk,
    UnevenKappa,
    left_out_estimate,
    left_out_risk,
    uneven_kappa,
)
from ridgescope.theory.modes import (
    ModeEstimate,
    kappa_from_heldout,
    kappa_from_modes,
)
from ridgescope.theory.pool import (
    PairRisks,
    PoolEstimator,
    PoolPrediction,
    pool_estimator,
)
from ridgescope.theory.pool_flow import pool_flow_risks
from ridgescope.theory.pool_modes import (
    kappa_from_pool_modes,
    leading_modes,
)
from ridgescope.theory.power_laws import (
    Diagnosis,
    Scaling,
    diagnose,
    power_law_bias,
    power_law_constant,
    power_law_kappa,
    scaling_regimes,
)
from ridgescope.theory.renormalisation import (
    AdditiveNoise,
    Chain,
    Features,
    Pool,
    Renormalised,
    Samples,
    Source,
    renormalise,
)
from ridgescope.theory.resolvents import Resolvent, Resolvents
from ridgescope.theory.risks import (
    Risks,
    centred_risks,
    risks,
    risks_at,
)
from ridgescope.theory.spectra import (
    Spectrum,
    Target,
    compressed_power_law,
    gaussian_equivalent,
    geometric,
    power_law,
    power_law_target,
)
from ridgescope.theory.table import (
    KappaTable,
)
from ridgescope.theory.width import (
    WidthEstimate,
    effective_width,
    effective_width_from_population,
    log_kappa_errors,
)

__all__ = [
    "Acting",
    "AdditiveNoise",
    "Certificate",
    "Chain",
    "Diagnosis",
    "Features",
    "FlowRisks",
    "Interval",
    "IterativeSolution",
    "KappaEstimate",
    "KappaTable",
    "KernelFlow",
    "KernelRidgeFit",
    "Learned",
    "LeftOutEstimate",
    "LeftOutRisk",
    "ModeEstimate",
    "Nystrom",
    "PairRisks",
    "Pool",
    "PoolEstimator",
    "PoolPrediction",
    "Renormalised",
    "Resolvent",
    "ResolventEstimate",
    "Resolvents",
    "Risks",
    "Samples",
    "Scaling",
    "Source",
    "Spectrum",
    "StochasticResolvent",
    "Target",
    "UnevenKappa",
    "WidthEstimate",
    "acting_ridge",
    "centred_risks",
    "certificate",
    "compressed_power_law",
    "conjugate_gradients",
    "control_pool",
    "diagnose",
    "effective_width",
    "effective_width_from_population",
    "flow_risks",
    "gaussian_equivalent",
    "geometric",
    "independent_outputs",
    "kappa_from_heldout",
    "kappa_from_modes",
    "kappa_from_pool_modes",
    "kappa_from_risks",
    "kernel_flow",
    "kernel_ridge",
    "kernel_ridge_fit",
    "leading_modes",
    "learned_modes",
    "left_out_estimate",
    "left_out_risk",
    "log_kappa_errors",
    "nystrom",
    "optimal_ridge",
    "pool_estimator",
    "pool_flow_risks",
    "pool_kappa_errors",
    "power_law",
    "power_law_bias",
    "power_law_constant",
    "power_law_kappa",
    "power_law_target",
    "renormalise",
    "resolvent_estimate",
    "risks",
    "risks_at",
    "scaling_regimes",
    "stochastic_resolvent",
    "tuned_learning_curve",
    "uneven_kappa",
]
