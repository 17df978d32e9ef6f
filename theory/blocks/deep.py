"""The finite-width law of a network with several hidden layers: one map from the resolvent to the kernel's mean.

With backward moments ``C_l`` and forward moments ``K_l`` the tangent kernel is ``sum_l C_l o K_(l-1)``: each neuron of
layer l adds ``a a^T/N`` to K_l and ``c c^T/N`` to C_l (a its output, c its slope times its backpropagated signal).
Seen through layer l, ``Theta = C_l o Omega_(l-1) + M_l o K_l + rest``, and the two noises shrink each other's cofactor:

    c of layer l   Omega_(l-1) = p K_(l-1)/(1+q') + b + S_(l-1) o V_(l-2)  ->  V_(l-1) = E r (Omega^-1 + r H_l/N)^-1
                   H_L = G o S_L,  H_(l-1) = S_(l-1) o W_l,  W_l = E r (H_l^-1 + r Omega_(l-1)/N)^-1
    a of layer L   p K_L -> p t K_L,  t = E r/(1 + r q),  q = p tr(G K_L)/N
    a of layer l   subtract  KK o (M - M~),  M~ = E r (M^-1 + r (G o KK)/N)^-1, on pairs (a, u), u = V Omega^-1 a:
                   a enters through K_(l+1) and the gate (A_l), u through Omega_l (D_l); M = diag(A_l, D_l)
                   A_l = (M~ of layer l+1, summed over its pair) o S_(l+1) + e V_l o (weight of Omega_(l+1) in Theta)

    Theta = p t K_L + b + S_L o V_(L-1) - sum_l KK_l o (M_l - M~_l),      G = (A + Theta)^-1

S_l mean gate of layer l, o the elementwise product, p the layer's trained share, b its bias, q' pairs of neurons,
e the slope of the gate in the covariance below it, r the fluctuating scale of a neuron's block. One hidden layer is
the law of `ridgescope.theory.blocks.law`. Derivation, and what of it is approximate: docs/theory/finite_width_depth.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import pad

from ridgescope.theory.blocks.pairs import shrunk_alone, shrunk_pair, symmetric
from ridgescope.theory.blocks.scales import Scales

State = list[Tensor]  # Theta, Omega_1 .. Omega_(L-1), each (n, n), and the forward shares psi (L,)


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer on n points, in units of the covariance that it gives the next layer (or the readout).

    ``value``: K, second moment of its outputs. ``gate``: S, that of its slopes. ``trained``: p, the weight of
    ``value`` in the tangent kernel of the weights above it. ``bias``: b, those weights' trained biases. ``bend``: e,
    slope of ``gate`` in the covariance below it. ``value_scale`` and ``gate_scale``: how a neuron's a a^T and c c^T
    fluctuate as wholes, mean 1.
    """

    value: Float64[Tensor, "n n"]
    gate: Float64[Tensor, "n n"]
    trained: float
    bias: float
    bend: float
    value_scale: Scales
    gate_scale: Scales


@dataclass(frozen=True)
class DeepKernel:
    """The random tangent kernel of a deep network on n points, the first ``num_train`` of which are trained on.

    ``inputs``: Omega_0, the kernel of the first layer's weights and biases. ``outputs``: C in the full kernel of C
    outputs, where every pair of neurons is one feature of C n entries; 1 in the trace form.
    """

    inputs: Float64[Tensor, "n n"]
    layers: Sequence[HiddenLayer]
    num_train: int
    outputs: int = 1

    def limit(self) -> Float64[Tensor, "n n"]:
        """The kernel at infinite width."""
        total = self.inputs
        for layer in self.layers:
            total = layer.trained * layer.value + layer.bias + layer.gate * total
        return total

    def at(self, index: Tensor) -> "DeepKernel":
        """The same on some of the points."""
        grid = (index[:, None], index)
        layers = [replace(layer, value=layer.value[grid], gate=layer.gate[grid]) for layer in self.layers]
        return DeepKernel(self.inputs[grid], layers, self.num_train, self.outputs)


@dataclass(frozen=True)
class Measures:
    """What the resolvent says to each layer, from the top down; zero on points without weight."""

    top: Tensor  # t
    metrics: list[Tensor]  # H_1 .. H_L
    noises: list[Tensor]  # G o KK psi, (2n, 2n), of layers 1 .. L-1
    pairs: list[Tensor]  # q' of layers 1 .. L-1
    tangents: list[Tensor]  # squared shrinkage of Omega_1 .. Omega_(L-1)
    linear: list[Tensor]  # share of K_(l+1) that moves with K_l

    def extended(self, extra: int) -> "Measures":
        """On ``extra`` more points without weight."""
        size = len(self.metrics[0])
        noises = [
            pad(m.view(2, size, 2, size), (0, extra, 0, 0, 0, extra)).reshape(2 * (size + extra), -1)
            for m in self.noises
        ]
        return replace(self, metrics=[pad(m, (0, extra, 0, extra)) for m in self.metrics], noises=noises)


class DeepMap:
    """``G -> Measures -> State`` on the points of one `DeepKernel`; ``share = 1/N``. Everything differentiable once.

    G is zero beyond the points that are trained on; the derivative in it is that of all entries.
    """

    def __init__(self, kernel: DeepKernel, share: float) -> None:
        self.kernel, self.layers, self.share = kernel, list(kernel.layers), share
        self.depth, self.weighted = len(self.layers), kernel.num_train
        values, vectors = torch.linalg.eigh(kernel.inputs)
        keep = values > 1e-13 * float(values[-1])
        self.features = vectors[:, keep] * values[keep].sqrt()

    def start(self) -> State:
        """Infinite width."""
        totals = [self.kernel.inputs]
        for layer in self.layers:
            totals.append(layer.trained * layer.value + layer.bias + layer.gate * totals[-1])
        return [totals[-1], *totals[1:-1], torch.ones(self.depth, dtype=torch.float64)]

    def __call__(self, state: State, resolvent: Tensor) -> State:
        return self.rebuild(self.measure(state[1:-1], state[-1], resolvent))

    def measure(self, omegas: Sequence[Tensor], psi: Tensor, resolvent: Tensor) -> Measures:
        """From the readout down; the state enters as what the neurons' blocks compete with."""
        last, outputs = self.layers[-1], self.kernel.outputs
        top = self._top(last.trained * psi[-1] * (resolvent * last.value).sum() * self.share)
        metrics = [resolvent * last.gate]
        noises: list[Tensor] = []
        pairs: list[Tensor] = []
        tangents: list[Tensor] = []
        linear: list[Tensor] = []
        for k in range(self.depth - 2, -1, -1):
            layer, above, omega = self.layers[k], self.layers[k + 1], omegas[k]
            shrunk, seen = shrunk_pair(omega, metrics[0], above.gate_scale, self.share, self.weighted)
            tangents.insert(0, ((metrics[0] * shrunk).sum() / (metrics[0] * omega).sum()) ** 2)
            pairs.insert(0, outputs * layer.trained * psi[k] * (layer.value * seen).sum() * self.share**2)
            metrics.insert(0, layer.gate * seen)
            noises.insert(0, resolvent.repeat(2, 2) * _moments(layer.value, omega, shrunk) * psi[k])
            below = (resolvent * above.gate * layer.value).sum() / (resolvent * above.value).sum()
            linear.insert(0, below.clamp(max=1.0))
        return Measures(top, metrics, noises, pairs, tangents, linear)

    def tangent_kernels(self, measures: Measures) -> tuple[list[Tensor], list[Tensor]]:
        """From the inputs up: Omega_1 .. Omega_(L-1), and V_0 .. V_(L-1)."""
        gram = self.features.T @ measures.metrics[0] @ self.features
        scale = self.layers[0].gate_scale
        shrink = Scales(self.share * scale.nodes, scale.weights / self.share) if self.share else None
        core = torch.eye(len(gram), dtype=torch.float64) if shrink is None else shrink.shrink(symmetric(gram))
        shrunk = [self.features @ core @ self.features.T]
        omegas = []
        for k in range(self.depth - 1):
            layer, above = self.layers[k], self.layers[k + 1].gate_scale
            omega = layer.trained * layer.value / (1 + measures.pairs[k]) + layer.bias + layer.gate * shrunk[-1]
            omegas.append(omega)
            shrunk.append(shrunk_alone(omega[None], measures.metrics[k + 1], above, self.share, self.weighted))
        return omegas, shrunk

    def rebuild(self, measures: Measures) -> State:
        """The tangent kernels; then from the top down what the lower layers' noise takes away, and what it leaves."""
        omegas, shrunk = self.tangent_kernels(measures)
        last = self.layers[-1]
        theta = last.trained * measures.top * last.value + last.bias + last.gate * shrunk[-1]
        chain = _Cofactors(self, measures.top)
        kept: list[Tensor] = []
        for k in range(self.depth - 2, -1, -1):
            full, left = chain.descend(k, shrunk[k + 1], measures.noises[k], measures.tangents[k])
            theta = theta - _folded(_moments(self.layers[k].value, omegas[k], shrunk[k + 1]) * (full - left))
            kept.insert(0, (measures.noises[k] * left).sum() / (measures.noises[k] * full).sum())
        psi = [torch.ones((), dtype=torch.float64)]  # the share of K_l that is left to compete with
        for share, rest in zip(measures.linear, kept, strict=True):
            psi.append(1 - share * (1 - psi[-1] * rest))
        return [theta, *omegas, torch.stack(psi)]

    def _top(self, load: Tensor) -> Tensor:
        scales = self.layers[-1].value_scale
        return (scales.weights * scales.nodes / (1 + scales.nodes * load)).sum()


class _Cofactors:
    """M_l and M~_l from the top down. ``carried`` multiplies K_(l+1), ``weight`` multiplies Omega_(l+1)."""

    def __init__(self, whole: DeepMap, top: Tensor) -> None:
        self.whole = whole
        one = torch.ones_like(whole.layers[-1].gate)
        self.carried, self.weight = whole.layers[-1].trained * top * one, one

    def descend(self, k: int, shrunk: Tensor, noise: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """M and M~ (2n, 2n) of layer k (from 0); ``shrunk`` is V_k, ``tangent`` the squared shrinkage of Omega_k."""
        layer, above = self.whole.layers[k], self.whole.layers[k + 1]
        forward = self.carried * above.gate + above.bend * shrunk * self.weight
        self.weight = self.weight * above.gate
        blocks = torch.stack([forward, layer.trained * self.weight])
        left = shrunk_alone(blocks, noise, layer.value_scale, self.whole.share, self.whole.weighted)
        size, factor = len(forward), tangent.sqrt()
        self.carried = left[:size, :size] + tangent * left[size:, size:]
        self.carried = self.carried + factor * (left[:size, size:] + left[size:, :size])
        self.weight = tangent * self.weight
        return torch.block_diag(*blocks), left


def _moments(value: Tensor, omega: Tensor, shrunk: Tensor) -> Tensor:
    """Second moments (2n, 2n) of (a, u), u = V Omega^-1 a."""
    transfer = torch.linalg.solve(omega, shrunk)  # Omega^-1 V
    mixed = value @ transfer
    return torch.cat([torch.cat([value, mixed], 1), torch.cat([mixed.T, symmetric(transfer.T @ mixed)], 1)])


def _folded(pairs: Tensor) -> Tensor:
    size = len(pairs) // 2
    return pairs.view(2, size, 2, size).sum((0, 2))
