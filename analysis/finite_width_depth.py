"""The deep law of a network: from its architecture and the inputs to the layers of `theory.blocks.deep`.

Besides the limiting kernels of each layer the law asks how a neuron's contribution fluctuates as a whole. Points are
positively correlated from the second layer on, so a neuron is on or off for many of them at once. With rho the mean
correlation of its preactivations, ``z = sqrt(rho) xi + sqrt(1 - rho) zeta`` gives its activity on all points at xi;
what all points share meets a resolvent that has projected it out, as far as its cofactor is flat (mean correlation m):

    r(xi) ~ (1 - m) E[phi^2 | xi] + m Var[phi | xi],        phi' in place of phi for the gate, times the scale of the
    backpropagated signal, 1 - rho_g + rho_g |v|^2, with rho_g its mean correlation over points

All of it comes from the architecture and the training inputs; nothing is fitted and no network is drawn.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ridgescope.models import MLP, layer_kernels
from ridgescope.models.activations import ACTIVATIONS, gaussian_nodes
from ridgescope.models.kernels.duals import DUALS
from ridgescope.theory.blocks import DeepKernel, HiddenLayer, Scales, fixed_scale, squared_readout

# where the law was compared with drawn kernels: docs/results/finite_width_depth.md
DEPTHS = (2, 3)
CROWDED = 0.4  # P/N^2: pairs of neurons are as many features as points, and three layers at P = 1.6 N^2 fail
BINS = 40  # nodes kept of a product of two scales


def deep_kernel(
    network: nn.Module,
    x_train: Float[Tensor, " p *shape"],
    x_eval: Float[Tensor, " t *shape"] | None = None,
    *,
    form: Literal["full", "trace"] = "full",
) -> DeepKernel:
    """The random kernel ``empirical_ntk / kernel_scale`` of a deep MLP's architecture; its weights are not read.

    All weights and biases are trained. ``form``: the full kernel of all outputs, or its average over outputs. Raises
    ``ValueError`` for an architecture without a law.
    """
    if not isinstance(network, MLP) or network.depth not in DEPTHS:
        kind = f"{type(network).__name__} of depth {getattr(network, 'depth', '?')}"
        raise ValueError(f"the deep law holds for an MLP with 2 or 3 hidden layers, got {kind}")
    size = len(x_train)
    points = x_train if x_eval is None else torch.cat([x_train, x_eval])
    kernels = layer_kernels(network, points)
    above = [_gain(network, k) for k in range(1, network.depth + 1)]
    first = network.layers[0]
    omega = first.weight_scale**2 * kernels.products + first.bias_scale**2
    covariance = (first.weight_scale * first.weight_std) ** 2 * kernels.products
    covariance = covariance + (first.bias_scale * first.bias_std) ** 2
    layers, omegas, covariances = [], [omega], [covariance]
    for k, gain in enumerate(above):
        layer = network.layers[k + 1]
        scale = network.kernel_scale if k == network.depth - 1 else 1.0
        value, gate, bias = gain * kernels.values[k], gain * kernels.slopes[k], layer.bias_scale**2 / scale
        trained = layer.weight_std**-2
        layers.append((value, gate, trained, bias))
        omegas.append(trained * value + bias + gate * omegas[-1])
        covariances.append(value + (layer.bias_scale * layer.bias_std) ** 2)
    copies = network.num_outputs if form == "full" else 1
    signal = torch.ones(size, size, dtype=torch.float64)
    hidden = []
    for k in reversed(range(network.depth)):
        value, gate, trained, bias = layers[k]
        cofactor = 1.0 if k == network.depth - 1 else _correlation(layers[k + 1][1], size)
        active = _activity(network.activation, covariances[k], size, cofactor, _correlation(omegas[k], size))
        readout = squared_readout(network.num_outputs, trace=form == "trace")
        shared = _correlation(signal, size)
        # C signals on the points: independent where points are, else one vector v of the readout for all of them
        back = Scales((1 - shared) * copies + shared * readout.nodes, readout.weights)
        bend = above[k] * _bend(network.activation, covariances[k], size)
        hidden.append(HiddenLayer(value, gate, trained, bias, bend, active[0], _product(back, active[1])))
        signal = signal * gate[:size, :size]
    return DeepKernel(omegas[0], hidden[::-1], size, copies)


def require_roomy(network: MLP, size: int, form: str) -> None:
    """``ValueError`` where a network is too narrow for its deep law at ``size`` training points."""
    numbers = size * (network.num_outputs if form == "full" else 1)
    if numbers > CROWDED * network.width**2:
        raise ValueError(
            f"width={network.width} is too narrow for the law of depth {network.depth} at {numbers} numbers to fit; "
            f"it was compared with drawn networks up to {CROWDED} width^2 of them"
        )


def _gain(network: MLP, k: int) -> float:
    """Variance that a unit second moment of layer k gives the next; the readout's in units of the kernel."""
    layer = network.layers[k]
    scale = network.kernel_scale if k == network.depth else 1.0
    return layer.fan_in * (layer.weight_scale * layer.weight_std) ** 2 / scale


def _correlation(gram: Tensor, size: int) -> float:
    """Mean correlation over all pairs of training points."""
    part = gram[:size, :size]
    norm = part.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return min(max(float((part / norm[:, None] / norm).mean()), 0.0), 1.0)


def _activity(activation: str, covariance: Tensor, size: int, value: float, gate: float) -> tuple[Scales, Scales]:
    """Scales of a neuron's outputs and slopes; ``value`` and ``gate`` are the mean correlations of their cofactors."""
    rho = _correlation(covariance, size)
    if rho == 0:
        return fixed_scale(), fixed_scale()
    sigma = math.sqrt(float(covariance.diagonal()[:size].mean()))
    xi, probability = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(12))
    zeta, weights = gaussian_nodes(step=0.01)
    z = sigma * (math.sqrt(rho) * xi[:, None] + math.sqrt(1 - rho) * zeta)
    z.requires_grad_()
    outputs = ACTIVATIONS[activation].function(z)
    (slopes,) = torch.autograd.grad(outputs.sum(), z)
    probability = probability / probability.sum()
    found = []
    for phi, share in ((outputs.detach(), value), (slopes, gate)):
        activity = phi.square() @ weights - share * (phi @ weights).square()
        found.append(Scales(activity / (probability @ activity), probability))
    return found[0], found[1]


def _bend(activation: str, covariance: Tensor, size: int) -> float:
    """Slope of ``E[phi' phi']`` in the covariance, at the mean correlation rho, times 1 - rho: a change of scale that
    all points share leaves correlations as they are."""
    q, rho = covariance.diagonal()[:size].mean(), _correlation(covariance, size)
    step = 1e-4
    k = torch.stack([(rho - step) * q, (rho + step) * q]).clamp(max=float(q))
    low, high = DUALS[activation](k, q.expand(2), q.expand(2))[1].tolist()
    return (1 - rho) * (high - low) / float(k[1] - k[0])


def _product(a: Scales, b: Scales) -> Scales:
    """The product of two independent scales, nodes merged to equal shares of the mean."""
    nodes = (a.nodes[:, None] * b.nodes).flatten()
    weights = (a.weights[:, None] * b.weights).flatten()
    nodes, order = nodes.sort()
    weights = weights[order]
    mass = (nodes * weights).cumsum(0)
    bins = (BINS * (1 - 1e-9) * mass / mass[-1]).floor().long()
    zero = torch.zeros(BINS, dtype=torch.float64)
    total, mean = zero.index_add(0, bins, weights), zero.index_add(0, bins, weights * nodes)
    keep = total > 0
    return Scales(mean[keep] / total[keep], total[keep])
