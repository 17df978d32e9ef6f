"""What is kept of a batch so that kernels need no further pass through the network.

Each layer is kept in the cheapest of four forms, decided once from its sizes (axes as in
`ridgescope.models.kernels.layers`; c is 1 in the trace form, where the outputs are merged into o):

    Gated      one position: K[c,p;e,q] += (d[c,p].d[e,q]) (a[p].a[q])
    Diagonal   the readout, whose d[c] is the c-th unit vector: K[c,p;c,q] += a[p].a[q]
    Explicit   the gradients themselves, K[c,p;e,q] += g[c,p].g[e,q]
    Spatial    several positions, kept as (a, d) because the gradients would be larger
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ridgescope.models.kernels.layers import (
    Supported,
    Use,
    faithful_layers,
    gradients_of,
    layer_cotangents,
    put_gradients,
    run_recorded,
    stacked_inputs,
    supported_layers,
)


@dataclass(frozen=True)
class Gated:
    inputs: Tensor  # (n, k)
    cotangents: Tensor  # (c, n, o)


@dataclass(frozen=True)
class Diagonal:
    inputs: Tensor  # (n, k)
    repeats: int  # c in the trace form, else 1


@dataclass(frozen=True)
class Explicit:
    gradients: Tensor  # (c, n, entries)


@dataclass(frozen=True)
class Spatial:
    inputs: Tensor  # (n, s, k)
    cotangents: Tensor  # (c, n, s, o)


Factor = Gated | Diagonal | Explicit | Spatial


@dataclass(frozen=True)
class LayerPlan:
    """Sizes of one layer and the form it is kept in."""

    layer: Supported
    form: type[Factor]
    positions: int
    fan_in: int  # k
    fan_out: int  # o, of one output

    def numbers(self, num_outputs: int) -> int:
        """Numbers kept for one input."""
        if self.form is Diagonal:
            return self.fan_in
        if self.form is Explicit:
            return num_outputs * self.fan_in * self.fan_out
        return self.positions * (self.fan_in + num_outputs * self.fan_out)


@dataclass(frozen=True)
class Plan:
    """How one network's kernel is computed; ``rest`` names the parameters left to their exact Jacobian."""

    model: nn.Module
    params: Mapping[str, Tensor]
    layers: Mapping[str, LayerPlan]
    rest: tuple[str, ...]
    num_outputs: int
    trace: bool

    @property
    def numbers_per_input(self) -> int:
        explicit = self.num_outputs * sum(self.params[name].numel() for name in self.rest)
        return explicit + sum(plan.numbers(self.num_outputs) for plan in self.layers.values())

    @property
    def largest_numbers_per_input(self) -> int:
        """Numbers of one input in the largest array of a pass."""
        return max((plan.positions * max(plan.fan_in, plan.fan_out) for plan in self.layers.values()), default=1)

    @property
    def working_numbers_per_input(self) -> int:
        """Preactivations, activations, patches and gradients of one input while a batch passes through."""
        jacobian = 3 * self.num_outputs * sum(self.params[name].numel() for name in self.rest)
        passed = sum(plan.positions * (plan.fan_in + 6 * plan.fan_out) for plan in self.layers.values())
        return passed + jacobian


def make_plan(model: nn.Module, params: Mapping[str, Tensor], x: Tensor, num_outputs: int, *, trace: bool) -> Plan:
    """Try the layers on a few inputs, and choose each one's form."""
    layers, outputs, uses = faithful_layers(model, params, supported_layers(model), x[:2])
    plans = {name: _plan_layer(layer, uses[name], outputs, trace) for name, layer in layers.items()}
    covered = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    rest = tuple(name for name, own in model.named_parameters() if id(own) not in covered)
    return Plan(model, params, plans, rest, num_outputs, trace)


def _plan_layer(layer: Supported, uses: list[Use], outputs: Tensor, trace: bool) -> LayerPlan:
    _, positions, fan_in = stacked_inputs(uses).shape
    fan_out = layer.weight.shape[0]
    form: type[Factor] = Spatial
    if positions == 1:
        form = Diagonal if uses[0].is_outcome(outputs) else Gated
    elif not prefers_spatial(positions, fan_in, fan_out, outputs.shape[1], trace):
        gradients = outputs.shape[1] * fan_in * fan_out
        if gradients <= EXPLICIT_MEMORY * positions * (fan_in + outputs.shape[1] * fan_out):
            form = Explicit
    return LayerPlan(layer, form, positions, fan_in, fan_out)


# Gradients that are kept are formed once and not for every pair of blocks, which is worth this much more memory
EXPLICIT_MEMORY = 3


# The spatial products run at about half the speed of one large matrix product (benchmarks/kernel_entk.py)
SPATIAL_PENALTY = 2


def prefers_spatial(positions: int, fan_in: int, fan_out: int, num_outputs: int, trace: bool) -> bool:
    """Whether products over pairs of positions need less time than explicit gradients, per pair of inputs."""
    s, c = positions, num_outputs
    if trace:
        return SPATIAL_PENALTY * s * s * (fan_in + c * fan_out) < c * fan_out * fan_in
    spatial = s * s * fan_in + (s * s * c + c * c * s) * fan_out
    return SPATIAL_PENALTY * spatial < c * c * fan_out * fan_in


def layer_factors(plan: Plan, x: Tensor, chunk: int) -> list[Factor]:
    """Pass the inputs through the network in batches of ``chunk`` and keep every layer's factor."""
    kept = {name: _Store(layer_plan, plan, x) for name, layer_plan in plan.layers.items()}
    for start in range(0, len(x), chunk):
        rows = slice(start, min(start + chunk, len(x)))
        _fill(plan, kept, x[rows], rows)
    factors = [store.factor() for store in kept.values()]
    if plan.rest:
        factors.append(Explicit(_jacobian(plan, x, chunk)))
    return factors


def _fill(plan: Plan, kept: "Mapping[str, _Store]", x: Tensor, rows: slice) -> None:
    layers = {name: layer_plan.layer for name, layer_plan in plan.layers.items()}
    outputs, uses = run_recorded(plan.model, plan.params, layers, x)
    for name, store in kept.items():
        if store.layer.form is not Explicit:
            store.inputs[rows] = stacked_inputs(uses[name])
    wanted = [name for name, layer_plan in plan.layers.items() if layer_plan.form is not Diagonal]
    flat = [use for name in wanted for use in uses[name]]
    for c in range(plan.num_outputs if wanted else 0):
        gradients = iter(gradients_of(outputs[:, c].sum(), flat))
        for name in wanted:
            mine = [next(gradients) for _ in uses[name]]
            kept[name].put(rows, c, uses[name], mine)


class _Store:
    """The arrays of one layer's factor while they are being filled; outputs outermost, or merged into o."""

    def __init__(self, layer: LayerPlan, plan: Plan, x: Tensor) -> None:
        self.layer, self.trace, self.num_outputs = layer, plan.trace, plan.num_outputs
        s, k, o = layer.positions, layer.fan_in, layer.fan_out
        dtype, device = next(iter(plan.params.values())).dtype, x.device
        self.inputs = torch.empty(0)
        self.outer = torch.empty(0)
        if layer.form is not Explicit:
            self.inputs = torch.empty(len(x), s, k, dtype=dtype, device=device)
        if layer.form is not Diagonal:
            shape = (o * k,) if layer.form is Explicit else (s, o)
            lead = (len(x), *shape[:-1], self.num_outputs, shape[-1])
            full = (self.num_outputs, len(x), *shape)
            self.outer = torch.empty(lead if self.trace else full, dtype=dtype, device=device)

    def put(self, rows: slice, c: int, uses: list[Use], gradients: list[Tensor]) -> None:
        target = self.outer[rows, ..., c, :] if self.trace else self.outer[c, rows]
        if self.layer.form is Explicit:
            put_gradients(target.view(len(target), self.layer.fan_out, self.layer.fan_in), uses, gradients)
        else:
            target[:] = layer_cotangents(self.layer.layer, gradients)

    def factor(self) -> Factor:
        if self.layer.form is Diagonal:
            return Diagonal(self.inputs[:, 0], self.num_outputs if self.trace else 1)
        outer = self.outer.flatten(-2)[None] if self.trace else self.outer
        if self.layer.form is Explicit:
            return Explicit(outer)
        if self.layer.form is Gated:
            return Gated(self.inputs[:, 0], outer[:, :, 0])
        return Spatial(self.inputs, outer)


def _jacobian(plan: Plan, x: Tensor, chunk: int) -> Tensor:
    """``d out_c / d theta`` over the parameters in ``plan.rest``, (c, n, entries)."""
    rest = {name: plan.params[name] for name in plan.rest}

    def outputs(some: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(plan.model, {**plan.params, **some}, (one[None],))[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap without a batching rule
        jacobians = vmap(jacrev(outputs), in_dims=(None, 0), chunk_size=chunk)(rest, x)
    rows = torch.cat([jacobian.flatten(2) for jacobian in jacobians.values()], dim=2)  # (n, c, entries)
    return rows.flatten(1)[None] if plan.trace else rows.transpose(0, 1).contiguous()
