"""What is kept of a batch so that kernels need no further pass through the network: each layer's factor."""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from ridgescope.models.kernels.checks import require_uncoupled
from ridgescope.models.kernels.memory import reuse_freed
from ridgescope.models.kernels.structured.channels import common_cotangents, readout_weights
from ridgescope.models.kernels.structured.forms import (
    Common,
    Diagonal,
    Explicit,
    Factor,
    Gated,
    Scaled,
    Spatial,
    cut,
    expanded,
)
from ridgescope.models.kernels.structured.layers import (
    Use,
    Uses,
    cotangents_of,
    layer_cotangents,
    put_gradients,
    run_recorded,
    stacked_inputs,
    stacked_sizes,
)
from ridgescope.models.kernels.structured.plan import LayerPlan, Plan


def settle(plan: Plan, x: Tensor, sizes: Callable[[Plan], tuple[int, int]]) -> tuple[Plan, list[Factor]]:
    """The plan without the layers whose gradient is not autograd's, and the factors of the first inputs of x.

    ``sizes(plan)``: of how many inputs factors are wanted (0 for none), and how many pass together. What is held
    against the plan's reference is the first batch itself; its factors have the bits they would have without that.
    """
    wanted, chunk = sizes(plan)
    reused = min(wanted, chunk) > 1  # one input alone does not show whether a layer keeps samples apart
    several = x[: max(2, chunk)] if len(x) > 1 else torch.cat([x, x])
    try:
        factors = _structured(plan, x[:wanted] if reused else several, chunk if reused else len(several), check=True)
    except _NotStructured as found:
        plan, reused = plan.without(found.names), False
        wanted, chunk = sizes(plan)
    if not reused:
        return plan, layer_factors(plan, x[:wanted], chunk) if wanted else []
    return plan, factors + _unstructured(plan, x[:wanted], chunk)


def layer_factors(plan: Plan, x: Tensor, chunk: int) -> list[Factor]:
    """Pass the inputs through the network in batches of ``chunk`` and keep every layer's factor."""
    return _structured(plan, x, chunk, check=False) + _unstructured(plan, x, chunk)


def _structured(plan: Plan, x: Tensor, chunk: int, *, check: bool) -> list[Factor]:
    reuse_freed(plan.working_bytes_per_input * min(chunk, len(x)) / 2, x.device)
    last = plan.channel_readout.last if plan.channel_readout is not None else None
    kept = {name: _Store(layer, plan, x, in_common=name == last) for name, layer in plan.layers.items()}
    for start in range(0, len(x) if kept or check else 0, chunk):
        rows = slice(start, min(start + chunk, len(x)))
        _fill(plan, kept, x[rows], rows, check=check and start == 0)
    return [store.factor() for store in kept.values()]


def _fill(plan: Plan, kept: "Mapping[str, _Store]", x: Tensor, rows: slice, *, check: bool) -> None:
    layers = {name: layer_plan.layer for name, layer_plan in plan.layers.items()}
    outputs, uses = run_recorded(plan.model, plan.params, layers, x, copies=plan.in_place)
    if not plan.in_place and any(use.output._version > 0 for calls in uses.values() for use in calls):
        outputs, uses = run_recorded(plan.model, plan.params, layers, x, copies=True)  # unlike the input on trial
    if check:
        require_uncoupled(outputs, plan.reference.values)
        _require_same_sizes(plan, uses, len(x))
    wanted = [name for name, layer in plan.layers.items() if layer.form is not Diagonal]
    common = common_cotangents(plan, uses)
    if plan.channel_readout is not None and common is not None:
        name = plan.channel_readout.last
        kept[name].put_common(rows, readout_weights(plan), uses[name], common)
        wanted.remove(name)
    flat = [use for name in wanted for use in uses[name]]
    for start in range(0, plan.num_outputs if wanted else 0, plan.together):
        some = slice(start, min(start + plan.together, plan.num_outputs))
        gradients = iter(cotangents_of(outputs, plan.outputs[some], flat))
        for name in wanted:
            kept[name].put(rows, some, uses[name], [next(gradients) for _ in uses[name]])
    for name, store in kept.items():
        if store.layer.form is not Explicit:
            store.inputs[rows] = stacked_inputs(uses[name])
    if check:
        _require_none({name for name, store in kept.items() if not _meets(plan, name, store)})


def _meets(plan: Plan, name: str, store: "_Store") -> bool:
    """Whether what is kept of the first input makes the reference's gradient."""
    mixture, reference = plan.reference.mixture, plan.reference
    size = (store.layer.fan_out, store.layer.fan_in)
    if store.in_common:
        psi = (mixture @ store.weights.to(mixture))[:, None] * store.common[0].to(mixture)
        if store.layer.form is Explicit:
            return reference.meets(name, psi)
        return reference.meets_product(name, psi.T, store.inputs[0].to(mixture))
    first = cut(store.factor(), slice(0, 1))
    assert not isinstance(first, Common | Scaled)
    if isinstance(first, Explicit):
        return reference.meets(name, (mixture @ first.gradients.to(mixture).view(len(mixture), -1)).view(size))
    inputs = first.inputs.to(mixture).view(-1, size[1])
    if isinstance(first, Diagonal):
        seed = mixture.new_zeros(1, size[0])
        seed[0, list(plan.outputs)] = mixture
        return reference.meets_product(name, seed, inputs)
    d = first.cotangents.to(mixture)
    d = d[0, 0].unflatten(-1, (len(mixture), -1)).movedim(-2, 0) if plan.trace else d[:, 0]
    return reference.meets_product(name, torch.tensordot(mixture, d, 1).view(-1, size[0]), inputs)


def _require_same_sizes(plan: Plan, uses: Uses, inputs: int) -> None:
    """As of one input, or what follows could not even be stored. Code that fuses layers may not call them at all."""
    _require_none(
        {
            name
            for name, layer in plan.layers.items()
            if len(uses[name]) != layer.uses
            or not all(len(use.input) == inputs for use in uses[name])
            or stacked_sizes(uses[name])[0] != layer.positions
        }
    )


class _NotStructured(Exception):
    """Layers whose gradient is not what their type says."""

    def __init__(self, names: set[str]) -> None:
        self.names = names


def _require_none(names: set[str]) -> None:
    if names:
        raise _NotStructured(names)


class _Store:
    """The arrays of one layer's factor while they are being filled; outputs outermost, or merged into o."""

    def __init__(self, layer: LayerPlan, plan: Plan, x: Tensor, *, in_common: bool) -> None:
        self.layer, self.trace, self.num_outputs = layer, plan.trace, plan.num_outputs
        s, k, o = layer.positions, layer.fan_in, layer.fan_out
        dtype, device = plan.dtype, x.device
        self.inputs = torch.empty(0)
        if layer.form is not Explicit:
            self.inputs = torch.empty(len(x), s, k, dtype=dtype, device=device)
        shape = (o * k,) if layer.form is Explicit else (s, o)
        lead = (len(x), *shape[:-1], self.num_outputs, shape[-1])
        full = (self.num_outputs, len(x), *shape)
        self._outer = partial(torch.empty, lead if self.trace else full, dtype=dtype, device=device)
        entries = k if layer.form is Explicit else 1
        self._common = partial(torch.empty, (len(x), o, entries), dtype=dtype, device=device)
        self.weights = torch.empty(0)  # (c, o), of what is in common
        self.in_common: list[slice] = []
        if in_common:  # at once, or what is kept would lie between arrays that come and go, whose space is then lost
            self.common  # noqa: B018
        elif layer.form is not Diagonal:
            self.outer  # noqa: B018

    @cached_property
    def outer(self) -> Tensor:
        return self._outer()

    @cached_property
    def common(self) -> Tensor:
        return self._common()

    def put_common(self, rows: slice, weights: Tensor, uses: list[Use], psi: Tensor) -> None:
        """As `put`, for all outputs: w[c] psi."""
        self.weights = weights.to(self.common)
        self.in_common.append(rows)
        if self.layer.form is Explicit:
            put_gradients(self.common[None, rows], uses, [psi[None]])
        else:
            self.common[rows, :, 0] = psi

    def put(self, rows: slice, outputs: slice, uses: list[Use], gradients: list[Tensor]) -> None:
        """``gradients`` (c, n, ...) of these outputs and inputs."""
        target = self.outer[rows].movedim(-2, 0)[outputs] if self.trace else self.outer[outputs, rows]
        if self.layer.form is Explicit:
            put_gradients(target.unflatten(-1, (self.layer.fan_out, self.layer.fan_in)), uses, gradients)
        else:
            target.copy_(layer_cotangents(self.layer.layer, gradients))

    def factor(self) -> Factor:
        if self.layer.form is Diagonal:
            return Diagonal(self.inputs[:, 0], self.num_outputs if self.trace else 1)
        if self.in_common and "outer" not in vars(self):
            if self.layer.form is Explicit:
                return Common(self.common, self.weights, self.trace)
            return Scaled(self.inputs[:, 0], self.common[:, :, 0], self.weights)
        outer = self.outer.flatten(-2)[None] if self.trace else self.outer
        for rows in self.in_common:  # other batches' channels mix
            outer[:, rows] = expanded(self.common[rows], self.weights, self.trace).view_as(outer[:, rows])
        if self.layer.form is Explicit:
            return Explicit(outer)
        if self.layer.form is Gated:
            return Gated(self.inputs[:, 0], outer[:, :, 0])
        return Spatial(self.inputs, outer)


def _unstructured(plan: Plan, x: Tensor, chunk: int) -> list[Factor]:
    return [Explicit(part) for part in _jacobians(plan, x, chunk)]


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
