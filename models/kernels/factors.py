"""What is kept of a batch so that kernels need no further pass through the network.

Each layer is kept in the cheapest of four forms, decided once from its sizes (axes as in
`ridgescope.models.kernels.layers`; c is 1 in the trace form, where the outputs are merged into o):

    Gated      one position: K[c,p;e,q] += (d[c,p].d[e,q]) (a[p].a[q])
    Diagonal   the readout, whose d[c] is the c-th unit vector: K[c,p;c,q] += a[p].a[q]
    Explicit   the gradients themselves, K[c,p;e,q] += g[c,p].g[e,q]
    Spatial    several positions, kept as (a, d) because the gradients would be larger
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
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
    try_layers,
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
    """How one network's kernel is computed.

    ``layers`` are the structured ones; ``rest`` names, for each module, the parameters left to their exact
    Jacobian. ``outputs`` and ``chosen`` parameters are those asked for. Factors and kernels are in ``dtype``,
    passes through the network in that of the parameters.
    """

    model: nn.Module
    params: Mapping[str, Tensor]
    layers: Mapping[str, LayerPlan]
    rest: Mapping[str, tuple[str, ...]]
    outputs: tuple[int, ...]
    chosen: tuple[str, ...]
    trace: bool
    dtype: torch.dtype
    activations: "Activations"

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    @property
    def blocks(self) -> int:
        """Rows of the kernel for each input: the trace form merges the outputs."""
        return 1 if self.trace else self.num_outputs

    @property
    def names(self) -> list[str]:
        """The modules in the order of `layer_factors`."""
        return [*self.layers, *self.rest]

    @property
    def numbers_per_input(self) -> int:
        """Numbers in the factors of one input."""
        return self._explicit + sum(plan.numbers(self.num_outputs) for plan in self.layers.values())

    @property
    def largest_numbers_per_input(self) -> int:
        """Numbers of one input in the largest array of a pass."""
        return max((plan.positions * max(plan.fan_in, plan.fan_out) for plan in self.layers.values()), default=1)

    @property
    def working_bytes_per_input(self) -> int:
        """Memory of one input while a batch passes through: what autograd keeps (measured), preactivations and their
        gradients, patches, temporary arrays."""
        size = next(iter(self.params.values())).element_size()
        layers = self.layers.values()
        passed = sum(plan.positions * (plan.fan_in + 3 * plan.fan_out) for plan in layers)
        gradients = max((plan.fan_in * plan.fan_out for plan in layers if plan.form is Explicit), default=0)
        jacobian = 3 * self._explicit + (self.num_outputs * self.activations.each // size if self.rest else 0)
        return self.activations.each + size * (passed + 3 * self.largest_numbers_per_input + gradients + jacobian)

    @property
    def _explicit(self) -> int:
        return self.num_outputs * sum(self.params[name].numel() for names in self.rest.values() for name in names)


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of a pass: of each input, and once (scaled weights, say)."""

    each: int
    once: int


def make_plan(
    model: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    outputs: Sequence[int],
    *,
    trace: bool,
    chosen: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Plan:
    """Try the layers on a few inputs, and choose each one's form. ``chosen`` are the parameters that count."""
    wanted = set(params if chosen is None else chosen)
    supported = {
        name: layer
        for name, layer in supported_layers(model).items()
        if {f"{name}.{own}".lstrip(".") for own, _ in layer.named_parameters(recurse=False)} <= wanted
    }
    pair = x[:2] if len(x) > 1 else torch.cat([x, x])
    one, two = (try_layers(model, params, supported, some) for some in (x[:1], pair))
    layers = faithful_layers(model, params, supported, pair, two)
    plans = {
        name: _plan_layer(layer, two.uses[name], two.outputs, len(outputs), trace) for name, layer in layers.items()
    }
    covered = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    rest: dict[str, tuple[str, ...]] = {}
    for name, own in model.named_parameters():
        if id(own) not in covered and name in wanted:
            module = name.rpartition(".")[0]
            rest[module] = (*rest.get(module, ()), name)
    return Plan(
        model,
        params,
        plans,
        rest,
        tuple(outputs),
        tuple(sorted(wanted)),
        trace,
        dtype or next(iter(params.values())).dtype,
        Activations(two.kept - one.kept, max(0, 2 * one.kept - two.kept)),
    )


def _plan_layer(layer: Supported, uses: list[Use], values: Tensor, num_outputs: int, trace: bool) -> LayerPlan:
    _, positions, fan_in = stacked_inputs(uses).shape
    fan_out = layer.weight.shape[0]
    form: type[Factor] = Spatial
    if positions == 1:
        form = Diagonal if uses[0].is_outcome(values) else Gated
    elif not prefers_spatial(positions, fan_in, fan_out, num_outputs, trace):
        gradients = num_outputs * fan_in * fan_out
        if gradients <= EXPLICIT_MEMORY * positions * (fan_in + num_outputs * fan_out):
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
    return factors + [Explicit(part) for part in _jacobians(plan, x, chunk)]


def cut(factor: Factor, rows: slice) -> Factor:
    """The factor of some of its inputs, as views."""
    if isinstance(factor, Diagonal):
        return Diagonal(factor.inputs[rows], factor.repeats)
    if isinstance(factor, Explicit):
        return Explicit(factor.gradients[:, rows])
    return type(factor)(factor.inputs[rows], factor.cotangents[:, rows])


def _fill(plan: Plan, kept: "Mapping[str, _Store]", x: Tensor, rows: slice) -> None:
    layers = {name: layer_plan.layer for name, layer_plan in plan.layers.items()}
    outputs, uses = run_recorded(plan.model, plan.params, layers, x)
    for name, store in kept.items():
        if store.layer.form is not Explicit:
            store.inputs[rows] = stacked_inputs(uses[name])
    wanted = [name for name, layer_plan in plan.layers.items() if layer_plan.form is not Diagonal]
    flat = [use for name in wanted for use in uses[name]]
    for row, c in enumerate(plan.outputs if wanted else ()):
        gradients = iter(gradients_of(outputs[:, c].sum(), flat))
        for name in wanted:
            mine = [next(gradients) for _ in uses[name]]
            kept[name].put(rows, row, uses[name], mine)


class _Store:
    """The arrays of one layer's factor while they are being filled; outputs outermost, or merged into o."""

    def __init__(self, layer: LayerPlan, plan: Plan, x: Tensor) -> None:
        self.layer, self.trace, self.num_outputs = layer, plan.trace, plan.num_outputs
        s, k, o = layer.positions, layer.fan_in, layer.fan_out
        dtype, device = plan.dtype, x.device
        self.inputs = torch.empty(0)
        self.outer = torch.empty(0)
        if layer.form is not Explicit:
            self.inputs = torch.empty(len(x), s, k, dtype=dtype, device=device)
        if layer.form is not Diagonal:
            shape = (o * k,) if layer.form is Explicit else (s, o)
            lead = (len(x), *shape[:-1], self.num_outputs, shape[-1])
            full = (self.num_outputs, len(x), *shape)
            self.outer = torch.empty(lead if self.trace else full, dtype=dtype, device=device)

    def put(self, rows: slice, row: int, uses: list[Use], gradients: list[Tensor]) -> None:
        target = self.outer[rows, ..., row, :] if self.trace else self.outer[row, rows]
        if self.layer.form is Explicit:
            matrices = target.view(len(target), self.layer.fan_out, self.layer.fan_in)
            passed = (
                matrices
                if matrices.dtype == gradients[0].dtype
                else torch.empty_like(matrices, dtype=gradients[0].dtype)
            )
            put_gradients(passed, uses, gradients)
            if passed is not matrices:
                matrices.copy_(passed)
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


def _jacobians(plan: Plan, x: Tensor, chunk: int) -> list[Tensor]:
    """``d out_c / d theta`` over the parameters of each module in ``plan.rest``, (c, n, entries)."""
    if not plan.rest:
        return []
    rest = {name: plan.params[name] for names in plan.rest.values() for name in names}
    rows = list(plan.outputs)

    def outputs(some: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(plan.model, {**plan.params, **some}, (one[None],))[0, rows]

    lead = (len(x), len(rows)) if plan.trace else (len(rows), len(x))
    sizes = [sum(plan.params[name].numel() for name in names) for names in plan.rest.values()]
    parts = [torch.empty(*lead, size, dtype=plan.dtype, device=x.device) for size in sizes]
    for start in range(0, len(x), chunk):
        some = slice(start, start + chunk)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap without a batching rule
            jacobians = vmap(jacrev(outputs), in_dims=(None, 0))(rest, x[some])
        for part, names in zip(parts, plan.rest.values(), strict=True):
            found = torch.cat([jacobians[name].flatten(2) for name in names], dim=2)  # (n, c, entries)
            if plan.trace:
                part[some] = found
            else:
                part[:, some] = found.transpose(0, 1)
    return [part.flatten(1)[None] if plan.trace else part for part in parts]
