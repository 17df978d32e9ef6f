"""How one network's kernel is computed: which layers are structured, and the form that each is kept in."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ridgescope.models.kernels.structured.forms import Diagonal, Explicit, Factor, Gated, Spatial, prefers_spatial
from ridgescope.models.kernels.structured.layers import (
    Supported,
    Use,
    cuts_patches,
    runs_from_patches,
    stacked_sizes,
    supported_layers,
)
from ridgescope.models.kernels.structured.trial import Activations, Reference, try_network

# Of the largest array in a pass, over all inputs and outputs that go together: few enough to stay near the cache, and
# enough to keep the convolutions busy (benchmarks/kernel_entk.py)
PASS_BYTES = 8e6


@dataclass(frozen=True)
class LayerPlan:
    """Sizes of one layer and the form it is kept in."""

    layer: Supported
    form: type[Factor]
    positions: int
    fan_in: int  # k
    fan_out: int  # o, of one output
    uses: int  # how often it is called
    entering: int  # numbers of its input, or of the patches that are cut from it
    widest: int  # numbers of the largest array on the way through it

    def numbers(self, num_outputs: int) -> int:
        """Numbers kept for one input."""
        if self.form is Diagonal:
            return self.fan_in
        if self.form is Explicit:
            return num_outputs * self.fan_in * self.fan_out
        return self.positions * (self.fan_in + num_outputs * self.fan_out)


@dataclass(frozen=True)
class Plan:
    """``layers`` are the structured ones; ``rest`` names, for each module, the parameters left to their exact
    Jacobian. ``outputs`` and ``chosen`` parameters are those asked for. Factors and kernels are in ``dtype``,
    passes through the network in that of the parameters. ``reference``: what the layers must still be held against.
    """

    model: nn.Module
    params: Mapping[str, Tensor]
    layers: Mapping[str, LayerPlan]
    rest: Mapping[str, tuple[str, ...]]
    outputs: tuple[int, ...]
    chosen: tuple[str, ...]
    trace: bool
    dtype: torch.dtype
    activations: Activations
    reference: Reference
    channel_readout: "ChannelReadout | None"
    in_place: bool  # whether the network writes into what its layers return

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
    def fast(self) -> int:
        """Inputs times outputs that pass through the network together without leaving the cache far behind."""
        widest = max((plan.widest for plan in self.layers.values()), default=1)
        return max(1, int(PASS_BYTES / (self._element * widest)))

    @property
    def together(self) -> int:
        """Outputs whose gradients go back through the network together: what the activations' derivatives cost is
        shared among them."""
        return min(self.num_outputs, max(1, self.fast // 2))

    @property
    def working_bytes_per_input(self) -> int:
        """Memory of one input while a batch passes through: what autograd keeps (measured), preactivations and their
        gradients, patches, temporary arrays."""
        layers, together = self.layers.values(), self.together
        passed = sum(plan.entering + plan.positions * (2 + together) * plan.fan_out for plan in layers)
        largest = max((max(plan.entering, together * plan.positions * plan.fan_out) for plan in layers), default=1)
        gradients = max((plan.fan_in * plan.fan_out for plan in layers if plan.form is Explicit), default=0)
        jacobian = 3 * self._explicit + (self.num_outputs * self.activations.each // self._element if self.rest else 0)
        return self.activations.each + self._element * (passed + 3 * largest + together * gradients + jacobian)

    @property
    def _element(self) -> int:
        return next(iter(self.params.values())).element_size()

    @property
    def _explicit(self) -> int:
        return self.num_outputs * sum(self.params[name].numel() for names in self.rest.values() for name in names)

    def without(self, names: Collection[str]) -> "Plan":
        """The same with these layers left to their exact Jacobian."""
        layers = {name: layer for name, layer in self.layers.items() if name not in names}
        rest = _rest(self.model, [layer.layer for layer in layers.values()], self.chosen)
        return replace(self, layers=layers, rest=rest, channel_readout=_channel_readout(layers, self.trace))


@dataclass(frozen=True)
class ChannelReadout:
    """The last layer and a readout of as many features: perhaps each sees that channel alone, which every batch is
    asked (`channels.common_cotangents`)."""

    last: str
    readout: str


def _channel_readout(layers: Mapping[str, LayerPlan], trace: bool) -> ChannelReadout | None:
    readout = next((name for name, layer in layers.items() if layer.form is Diagonal), None)
    if readout is None or layers[readout].fan_out == 1:
        return None
    features = layers[readout].layer.weight.shape[1]
    shares = [name for name, layer in layers.items() if layer.uses == 1 and _shares(layer, trace)][-1:]
    return ChannelReadout(shares[0], readout) if shares and layers[shares[0]].fan_out == features else None


def _shares(layer: LayerPlan, trace: bool) -> bool:
    """Whether outputs that share a layer's cotangents spare work: a dense layer's full kernel has a product for each
    pair of outputs in any case."""
    return (layer.form is Gated and trace) or (layer.form is Explicit and isinstance(layer.layer, nn.Conv2d))


def make_plan(
    model: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    outputs: Iterable[int] | None,
    *,
    trace: bool,
    chosen: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
) -> Plan:
    """Pass one input through the network and choose each layer's form; ``outputs`` and ``chosen`` parameters count.

    All layers of a known type that keep samples apart are taken for structured; `factors.settle` sees whether they are.
    Raises ``ValueError`` for outputs that do not exist or are no matrix.
    """
    wanted = set(params if chosen is None else chosen)
    supported = {
        name: layer
        for name, layer in supported_layers(model).items()
        if {f"{name}.{own}".lstrip(".") for own, _ in layer.named_parameters(recurse=False)} <= wanted
    }
    trial = try_network(model, params, supported, x, outputs)
    plans = {
        name: _plan_layer(layer, trial.uses[name], trial.values, len(trial.outputs), trace)
        for name, layer in supported.items()
        if trial.uses[name] and all(len(use.input) == len(trial.values) for use in trial.uses[name])
    }
    return Plan(
        model,
        params,
        plans,
        _rest(model, [plan.layer for plan in plans.values()], wanted),
        tuple(trial.outputs),
        tuple(sorted(wanted)),
        trace,
        dtype or next(iter(params.values())).dtype,
        trial.activations,
        trial.reference,
        _channel_readout(plans, trace),
        trial.in_place,
    )


def _rest(model: nn.Module, layers: Iterable[Supported], wanted: Collection[str]) -> dict[str, tuple[str, ...]]:
    covered = {id(parameter) for layer in layers for parameter in layer.parameters()}
    rest: dict[str, tuple[str, ...]] = {}
    for name, own in model.named_parameters():
        if id(own) not in covered and name in wanted:
            module = name.rpartition(".")[0]
            rest[module] = (*rest.get(module, ()), name)
    return rest


def _plan_layer(layer: Supported, uses: list[Use], values: Tensor, num_outputs: int, trace: bool) -> LayerPlan:
    positions, fan_in = stacked_sizes(uses)
    fan_out = layer.weight.shape[0]
    form: type[Factor] = Spatial
    if positions == 1:
        form = Diagonal if uses[0].is_outcome(values) else Gated
    elif not prefers_spatial(positions, fan_in, fan_out, num_outputs, trace):
        gradients = num_outputs * fan_in * fan_out
        if gradients <= EXPLICIT_MEMORY * positions * (fan_in + num_outputs * fan_out):
            form = Explicit
    convolution = isinstance(layer, nn.Conv2d)
    patches, image = positions * fan_in, max(use.input[0].numel() for use in uses)
    cut = convolution and (form is not Explicit or any(cuts_patches(use) for use in uses))
    passed = patches if convolution and runs_from_patches(uses[0].input) else image
    entering, widest = patches if cut else image, max(passed, positions * fan_out)
    return LayerPlan(layer, form, positions, fan_in, fan_out, len(uses), entering, widest)


# Gradients that are kept are formed once and not for every pair of blocks, which is worth this much more memory
EXPLICIT_MEMORY = 3
