"""A layer's gradient as a sum over positions: ``d out_c / d [W, b] = sum_s d_c(s) (x) a(s)``.

The positions s are the pixels of a convolution (a is then the patch under the kernel), the tokens of a linear
layer, and the uses of a layer that is called more than once; a plain dense layer has one. With scales and
bias put into a, every supported layer looks the same to the contraction. A convolution is itself run from its
patches, as ``[W, b] a``, so that they are cut once.

Axes: n inputs, s positions, k entries of a (fan-in, and one for a bias), o entries of d (fan-out), c outputs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ridgescope.models.layers import ScaledConv2d, ScaledLinear
from ridgescope.models.patches import Geometry

Supported = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Use:
    """One call of a layer: what its weights saw, its output, and the copy that the network went on with."""

    inputs: Tensor  # a of `layer_inputs`
    output: Tensor
    passed_on: Tensor

    def is_outcome(self, outputs: Tensor) -> bool:
        """Whether the network returned this very tensor, and nothing wrote into it."""
        return outputs is self.passed_on and outputs._version == 0


Uses = dict[str, list[Use]]


def supported_layers(model: nn.Module) -> dict[str, Supported]:
    """Layers whose gradient has the form above; types must match exactly, as a subclass may do anything."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Supported)
        and _known(module)
        and "forward" not in vars(module)  # replaced on this very object
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())  # no weights tied across layers
    }


def _known(module: Supported) -> bool:
    if isinstance(module, nn.Linear):
        return type(module) in (nn.Linear, ScaledLinear)
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return type(module) in (nn.Conv2d, ScaledConv2d) and plain and not isinstance(module.padding, str)


@contextmanager
def recorded(layers: Mapping[str, Supported]) -> Iterator[Uses]:
    """Collect every call of the layers; what they return stays differentiable from their outputs on."""
    uses: Uses = {name: [] for name in layers}

    def call(name: str, layer: Supported, x: Tensor) -> Tensor:
        a = layer_inputs(layer, x.detach())
        output = _convolve(layer, x, a) if isinstance(layer, nn.Conv2d) else type(layer).forward(layer, x)
        if not output.requires_grad:
            output.requires_grad_()
        passed_on = output.clone()  # an in-place activation would overwrite the recorded preactivation
        uses[name].append(Use(a, output, passed_on))
        return passed_on

    for name, layer in layers.items():
        layer.forward = partial(call, name, layer)  # type: ignore[method-assign]
    try:
        yield uses
    finally:
        for layer in layers.values():
            del layer.forward


def run_recorded(
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor
) -> tuple[Tensor, Uses]:
    """Outputs ``(n, c)`` with their graph, and what each layer saw."""
    with torch.enable_grad(), recorded(layers) as uses:
        return functional_call(model, dict(params), (x,)), uses


def layer_inputs(layer: Supported, x: Tensor) -> Tensor:
    """``a``: inputs or patches, scaled and with the bias's entry, shape (n, s, k)."""
    scale, bias_scale = getattr(layer, "weight_scale", 1.0), getattr(layer, "bias_scale", 1.0)
    if isinstance(layer, nn.Linear):
        rows = scale * x.reshape(len(x), -1, x.shape[-1])
        return rows if layer.bias is None else F.pad(rows, (0, 1), value=bias_scale)
    windows = Geometry.of(layer).windows(scale * x)
    fan_in, positions = windows.shape[1:4].numel(), windows.shape[4:].numel()
    a = x.new_empty(len(x), fan_in + (layer.bias is not None), positions)
    a[:, :fan_in].view(windows.shape).copy_(windows)
    a[:, fan_in:] = bias_scale
    return a.transpose(1, 2)


def stacked_inputs(uses: list[Use]) -> Tensor:
    """``a`` over all uses, shape (n, s, k)."""
    return torch.cat([use.inputs for use in uses], dim=1) if len(uses) > 1 else uses[0].inputs


def _convolve(layer: nn.Conv2d, x: Tensor, a: Tensor) -> Tensor:
    weight = layer.weight.detach().flatten(1)
    stacked = weight if layer.bias is None else torch.cat([weight, layer.bias.detach()[:, None]], dim=1)
    back = getattr(layer, "weight_scale", 1.0) * weight
    return _Convolution.apply(x, a.transpose(1, 2), stacked, back, Geometry.of(layer))


class _Convolution(torch.autograd.Function):
    """``[W, b] a`` for patches a of an image that are there already, differentiable in the image."""

    @staticmethod
    def forward(ctx, image, patches, stacked, back, geometry):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(back)
        ctx.geometry, ctx.size = geometry, image.shape[2:]
        return (stacked @ patches).unflatten(2, geometry.positions(*ctx.size))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (back,) = ctx.saved_tensors
        return ctx.geometry.fold(back.T @ gradient.flatten(2), *ctx.size), None, None, None, None


def gradients_of(score: Tensor, uses: list[Use]) -> list[Tensor]:
    """``d score / d output`` of each use; the graph is kept."""
    outputs = [use.output for use in uses]
    return list(torch.autograd.grad(score, outputs, retain_graph=True, materialize_grads=True))


def layer_cotangents(layer: Supported, gradients: list[Tensor]) -> Tensor:
    """``d`` of one output over all uses, shape (n, s, o); a view where the layer is used once."""
    if isinstance(layer, nn.Conv2d):
        gradients = [g.flatten(2).transpose(1, 2) for g in gradients]
    parts = [g.reshape(len(g), -1, g.shape[-1]) for g in gradients]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def faithful_layers(
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor
) -> tuple[dict[str, Supported], Tensor, Uses]:
    """The layers whose gradient for the first input, put together from positions, is autograd's; and the run.

    A layer fails that is never called, whose weight is read elsewhere too, or whose batch axis is folded or
    reordered.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        score = _probe(functional_call(model, leaves, (x,)))
        gradients = torch.autograd.grad(score, list(leaves.values()), materialize_grads=True)
    true = dict(zip(leaves, gradients, strict=True))
    outputs, uses = run_recorded(model, params, layers, x)
    used = [name for name in layers if uses[name] and all(len(use.inputs) == len(x) for use in uses[name])]
    cotangents = iter(gradients_of(_probe(outputs), [use for name in used for use in uses[name]]))
    faithful = {}
    for name in used:
        mine = layer_cotangents(layers[name], [next(cotangents) for _ in uses[name]])
        if _agrees(mine[0].T @ stacked_inputs(uses[name])[0], _stacked(layers[name], name, true)):
            faithful[name] = layers[name]
    return faithful, outputs, uses


def _probe(outputs: Tensor) -> Tensor:
    """The first input's outputs with fixed generic weights, so that none cancels another."""
    return outputs[0] @ torch.cos(torch.arange(outputs.shape[1], dtype=outputs.dtype, device=outputs.device))


def _stacked(layer: Supported, name: str, gradients: Mapping[str, Tensor]) -> Tensor:
    """Autograd's ``[dW, db]`` as a matrix (o, k)."""
    prefix = f"{name}." if name else ""
    weight = gradients[prefix + "weight"].flatten(1)
    return weight if layer.bias is None else torch.cat([weight, gradients[prefix + "bias"][:, None]], dim=1)


def _agrees(built: Tensor, true: Tensor) -> bool:
    tolerance = torch.finfo(true.dtype).eps ** 0.5  # far above rounding, far below any structural mistake
    return bool((built - true).norm() <= tolerance * true.norm())
