"""Ridge regression with a kernel made of random blocks, averaged over the blocks: risks, kappa, their derivatives.

The risk needs no second law. Give every evaluation point weight e in the loss L = min (1/P) sum (y-f)^2 + ... :
then dL/de at e = 0 is the test risk, and the mean of L is lam Y^T G Y. Differentiating the fixed point once gives,
with alpha = G y, u(x) = delta_x - G k(x) and the field eta = (Phi^-1 - M)^-1 [alpha alpha^T],

    E (y - f(x))^2 = (y - k(x)^T alpha)^2 + (1/N) u(x)^T Psi u(x),      Psi = sum_b gate_b o (J_b eta_b J_b^T)

squared bias and variance over the features; a training point has P lam/w in place of 1 in both. Derived in
docs/theory/finite_width.md. Letters: P training points, T evaluation points, C outputs, N width, lam ridge.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Real, as_float64, positive, same_length
from ridgescope.theory.blocks.families import BlockFamily, PointKernel
from ridgescope.theory.blocks.fixed_point import (
    Linearised,
    Orders,
    attach,
    mean_inverse,
    orders_of,
    solve,
    sum_kernels,
)
from ridgescope.theory.solver import solve_kappa


@dataclass(frozen=True)
class BlockKernel:
    """A random kernel ``fixed + (1/N) sum_n B_n`` on P training and T evaluation points, by its families.

    ``outputs``: C in the full kernel of C outputs, where a block is one direction of output space; 1 in the trace form.
    """

    families: Sequence[BlockFamily]
    fixed: PointKernel | None = None
    outputs: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """(P, T)."""
        return self.families[0].gate.sizes

    def limit(self) -> PointKernel:
        """The kernel at infinite width."""
        total = self.families[0].limit()
        for family in self.families[1:]:
            total = total.plus(family.limit())
        return total if self.fixed is None else total.plus(self.fixed)

    def deterministic(self, ridges: Float64[Tensor, " p"]) -> Float64[Tensor, "p p"]:
        """A: the ridge of each training point, P lam/w, and the deterministic kernel."""
        return torch.diag(ridges) if self.fixed is None else torch.diag(ridges) + self.fixed.train


@dataclass(frozen=True)
class BlockPrediction:
    """Averages over the random blocks. Scalars are 0-dim float64 tensors, differentiable where the inputs are.

    ``kappa1 = 1/tr G``: what the training kernel's resolvent measures. ``kappa_features``: the ridge at which the
    infinite-width kernel has as many degrees of freedom, lam renormalised by the features alone (lam at N = inf).
    ``df1 = P (1 - lam/kappa1)`` per output, ``gamma1 = 1 - 1/(dkappa1/dlam)`` as estimated from ``tr G^2``, and
    ``df2 = P gamma1``. ``predictor`` (T, C) is the mean over networks. Risks are summed over outputs:
    ``test = test_bias + test_variance`` (squared error of the mean predictor; variance over networks), train and the
    leave-one-out risk alike; nan without evaluation targets. ``test_points``, ``variance_points`` (T,) are per point.
    ``dkappa1_dridge`` is a derivative at fixed P.
    """

    kappa1: Float64[Tensor, ""]
    kappa_features: Float64[Tensor, ""]
    dkappa1_dridge: Float64[Tensor, ""]
    df1: Float64[Tensor, ""]
    df2: Float64[Tensor, ""]
    gamma1: Float64[Tensor, ""]
    test: Float64[Tensor, ""]
    test_bias: Float64[Tensor, ""]
    test_variance: Float64[Tensor, ""]
    train: Float64[Tensor, ""]
    train_bias: Float64[Tensor, ""]
    train_variance: Float64[Tensor, ""]
    gcv: Float64[Tensor, ""]
    loo: Float64[Tensor, ""]
    loo_bias: Float64[Tensor, ""]
    predictor: Float64[Tensor, "t c"]
    test_points: Float64[Tensor, " t"]
    variance_points: Float64[Tensor, " t"]
    resolvent: Float64[Tensor, "p p"] = field(repr=False)
    orders: Orders = field(repr=False)
    iterations: int


def block_law(
    kernel: BlockKernel,
    targets: Float64[Tensor, "p c"],
    eval_targets: Float64[Tensor, "t c"] | None = None,
    *,
    width: Real,
    ridge: Real,
    weights: Float64[Tensor, " p"] | None = None,
    start: Orders | None = None,
) -> BlockPrediction:
    """Predict regression with ridge ``ridge`` on ``kernel`` with ``width`` blocks per family.

    ``width``, ``ridge``, ``weights`` (w of the loss (1/P) sum w_i e_i^2, default 1) and ``targets`` may require
    gradients: every scalar result is then differentiable once, by the implicit function theorem. ``start``: the
    ``orders`` of a neighbouring (width, ridge) as a warm start. ``width = inf`` is the infinite-width kernel.

    Cost: 10-30 Cholesky inversions and as many products of P x P matrices, P^2 r each for a family of rank r.
    Raises ``ValueError`` for width < 1, ridge <= 0, and where the training kernel has two equal points.
    """
    problem = _Problem(kernel, targets, width, ridge, weights)
    return problem.predict(eval_targets, start)


def block_kappa(kernel: BlockKernel, *, width: Real, ridge: Real, start: Orders | None = None) -> tuple[float, Orders]:
    """kappa_1 alone, and the fixed point's ``orders``: a third of the cost of `block_law`, with its arguments."""
    width, ridge = checked_width(width), positive("ridge", as_float64("ridge", ridge))
    require_distinct(kernel.limit().train)
    size = kernel.sizes[0]
    with torch.no_grad():
        base = kernel.deterministic(size * ridge.expand(size))
        found = solve(kernel.families, base, width, start)
        return 1 / float(mean_inverse(kernel.families, base, found.orders).trace()), found.orders


def checked_width(width: Real) -> Tensor:
    width = as_float64("width", width)
    if not bool(width >= 1):
        raise ValueError(f"width={float(width):g} must be at least 1 (inf is allowed): a network has neurons")
    return width


class _Problem:
    def __init__(self, kernel: BlockKernel, targets: Tensor, width: Real, ridge: Real, weights: Tensor | None) -> None:
        self.kernel, self.families = kernel, kernel.families
        self.width = checked_width(width)
        self.size = kernel.sizes[0]
        self.targets, self.weights, self.ridge = checked_problem(targets, weights, ridge, self.size)
        self.limit = kernel.limit()
        require_distinct(self.limit.train)

    def base(self) -> Tensor:
        return self.kernel.deterministic(self.size * self.ridge / self.weights)

    def predict(self, eval_targets: Tensor | None, start: Orders | None) -> BlockPrediction:
        families, base = self.families, self.base()
        with torch.no_grad():
            found = solve(families, base, self.width, start)
            inverse = mean_inverse(families, base, found.orders)
            linear = Linearised(families, inverse, found.orders, self.width)
        held = mean_inverse(families, base, found.orders)
        orders = attach(found.orders, orders_of(families, held, self.width), linear.solve_transposed)
        inverse = mean_inverse(families, base, orders)

        alpha = inverse @ self.targets
        eta = self._field(linear, orders, inverse, alpha @ alpha.T)
        source = inverse @ (inverse / self.weights[:, None])  # G W^-1 G
        slope = self._field(linear, orders, inverse, source)

        # -d tr(W^-1 G)/d(P lam): the ridge itself, and the blocks' answer to it
        answer = (source * sum_kernels(self.families, slope)).sum() / self.width
        psi = sum_kernels(families, eta)
        spread = ((inverse @ psi) * inverse).sum(1) / self.width

        cross = self._shrunk_cross(orders)
        predictor = cross @ alpha
        reach = cross @ inverse  # rows k(x)^T G
        own = torch.stack([f.own(e) for f, e in zip(families, eta, strict=True)]).sum(0)
        psi_cross = torch.stack([f.cross(e) for f, e in zip(families, eta, strict=True)]).sum(0)
        variance = (own - 2 * (reach * psi_cross).sum(1) + ((reach @ psi) * reach).sum(1)) / self.width
        return assembled(
            inverse,
            alpha,
            spread,
            (source.diagonal() / self.weights).sum() + answer,
            predictor,
            variance,
            limit=self.limit.train,
            weights=self.weights,
            ridge=self.ridge,
            eval_targets=eval_targets,
            orders=found.orders,
            iterations=found.iterations,
        )

    def _field(self, linear: Linearised, orders: Orders, inverse: Tensor, probe: Tensor) -> Orders:
        """``(Phi^-1 - M)^-1`` applied to the families' orders of ``probe`` (P, P)."""
        with torch.no_grad():
            eta = linear.respond(linear.solve([f.order(probe) for f in self.families]))
        if not (probe.requires_grad or inverse.requires_grad):
            return eta
        answer = orders_of(self.families, inverse @ sum_kernels(self.families, eta) @ inverse, self.width)
        image = [
            f.scales.respond(order, f.order(probe) + back)
            for f, order, back in zip(self.families, orders, answer, strict=True)
        ]
        return attach(eta, image, linear.solve)

    def _shrunk_cross(self, orders: Orders) -> Tensor:
        parts = [f.cross(f.scales.shrink(o)) for f, o in zip(self.families, orders, strict=True)]
        total = torch.stack(parts).sum(0)
        return total if self.kernel.fixed is None else total + self.kernel.fixed.cross


def assembled(
    inverse: Tensor,
    alpha: Tensor,
    spread: Tensor,
    slope: Tensor,
    predictor: Tensor,
    variance: Tensor,
    *,
    limit: Tensor,
    weights: Tensor,
    ridge: Tensor,
    eval_targets: Tensor | None,
    orders: Orders,
    iterations: int,
) -> BlockPrediction:
    """What a law predicts, from its resolvent G (P, P) and ``alpha = G y`` (P, C).

    ``spread`` (P,) is (G Psi G)_ii and ``slope`` = -d tr(W^-1 G)/d(P lam), the blocks' answer included; ``predictor``
    (T, C) and ``variance`` (T,) are of the evaluation points; ``limit`` (P, P) is the kernel at infinite width.
    """
    size = len(inverse)
    share, scale = weights / size, size * ridge / weights
    kappa1 = 1 / (inverse.diagonal() / weights).sum()
    dkappa = kappa1**2 * size * slope
    df1 = size * (1 - ridge / kappa1)
    gamma1 = 1 - 1 / dkappa
    train_bias = (share * (scale[:, None] * alpha).square().sum(1)).sum()
    train_variance = (share * scale.square() * spread).sum()
    train = train_bias + train_variance
    left_out = share / inverse.diagonal().square()
    if eval_targets is None:
        error = torch.full((len(predictor),), torch.nan, dtype=torch.float64)
    else:
        error = (as_float64("eval_targets", eval_targets) - predictor).square().sum(1)
    return BlockPrediction(
        kappa1=kappa1,
        kappa_features=_matching_ridge(limit, share, df1),
        dkappa1_dridge=dkappa,
        df1=df1,
        df2=size * gamma1,
        gamma1=gamma1,
        test=(error + variance).mean(),
        test_bias=error.mean(),
        test_variance=variance.mean(),
        train=train,
        train_bias=train_bias,
        train_variance=train_variance,
        gcv=(kappa1 / ridge) ** 2 * train,
        loo=(left_out * (alpha.square().sum(1) + spread)).sum(),
        loo_bias=(left_out * alpha.square().sum(1)).sum(),
        predictor=predictor,
        test_points=error + variance,
        variance_points=variance,
        resolvent=inverse,
        orders=orders,
        iterations=iterations,
    )


def _matching_ridge(limit: Tensor, share: Tensor, df1: Tensor) -> Tensor:
    e = torch.linalg.eigvalsh(share.sqrt()[:, None] * limit * share.sqrt()).flip(0).clamp_min(0)
    return solve_kappa(e, None, e.new_zeros(()), e.new_zeros(1), df1.reshape(1, 1))[0]


def checked_problem(targets: Tensor, weights: Tensor | None, ridge: Real, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (P, C), weights (P,) and ridge of a law's problem. Raises ``ValueError``."""
    targets = as_float64("targets", targets)
    if targets.ndim != 2 or len(targets) != size:
        raise ValueError(f"targets has shape {tuple(targets.shape)} for {size} training points; pass (P, C)")
    if weights is None:
        weights = torch.ones(size, dtype=torch.float64)
    else:
        same_length("weights", as_float64("weights", weights), "the training kernel", size)
        weights = positive("weights", as_float64("weights", weights))
    return targets, weights, positive("ridge", as_float64("ridge", ridge))


def require_distinct(gram: Float64[Tensor, "n n"]) -> None:
    """``ValueError`` where two points are the same to the kernel, naming them."""
    norms = gram.diagonal()
    gap = norms[:, None] + norms - 2 * gram
    gap.fill_diagonal_(torch.inf)
    nearest = int(gap.argmin()) if len(gram) > 1 else 0
    i, j = divmod(nearest, len(gram))
    if len(gram) > 1 and float(gap[i, j]) <= 1e-10 * float(norms[i] + norms[j]):
        raise ValueError(
            f"training points {i} and {j} are equal to the kernel, where the law's assumption of generic points "
            "fails; drop one of them and give the other weight 2"
        )
