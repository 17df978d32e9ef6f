"""A layer's gradient as a sum over positions: ``d out_c / d [W, b] = sum_s d_c(s) (x) a(s)``.

The positions s are the pixels of a convolution (a is then the patch under the kernel), the tokens of a linear
layer, and the uses of a layer that is called more than once; a plain dense layer has one. With scales and
bias put into a, every supported layer looks the same to the contraction.

Axes: n inputs, s positions, k entries of a (fan-in, and one for a bias), o entries of d (fan-out), c outputs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ridgescope.models.layers import ScaledConv2d, ScaledLinear

Supported = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input, its output, and the copy that the network went on with."""

    input: Tensor
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

    def record(name: str, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        passed_on = output.clone()  # an in-place activation would overwrite the recorded preactivation
        uses[name].append(Use(args[0].detach(), output, passed_on))
        return passed_on

    def hook(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args, output: record(name, args, output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def run_recorded(
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor
) -> tuple[Tensor, Uses]:
    """Outputs ``(n, c)`` with their graph, and what each layer saw."""
    with torch.enable_grad(), recorded(layers) as uses:
        return functional_call(model, dict(params), (x,)), uses


def layer_inputs(layer: Supported, uses: list[Use]) -> Tensor:
    """``a``: inputs or patches over all uses, scaled and with the bias's entry, shape (n, s, k)."""
    scale, bias_scale = getattr(layer, "weight_scale", 1.0), getattr(layer, "bias_scale", 1.0)
    parts = [windows(layer, scale * use.input) for use in uses]
    inputs = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    return inputs if layer.bias is None else F.pad(inputs, (0, 1), value=bias_scale)


def gradients_of(score: Tensor, uses: list[Use]) -> list[Tensor]:
    """``d score / d output`` of each use; the graph is kept."""
    outputs = [use.output for use in uses]
    return list(torch.autograd.grad(score, outputs, retain_graph=True, materialize_grads=True))


def layer_cotangents(layer: Supported, gradients: list[Tensor]) -> Tensor:
    """``d`` of one output over all uses, shape (n, s, o)."""
    if isinstance(layer, nn.Conv2d):
        gradients = [g.flatten(2).transpose(1, 2) for g in gradients]
    parts = [g.reshape(len(g), -1, g.shape[-1]) for g in gradients]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def windows(layer: Supported, a: Tensor) -> Tensor:
    """What the weights see at each position, in the order of ``weight.flatten(1)``, shape (n, s, fan-in)."""
    if isinstance(layer, nn.Linear):
        return a.reshape(len(a), -1, a.shape[-1])
    (kernel_h, kernel_w), (stride_h, stride_w) = layer.kernel_size, layer.stride
    assert not isinstance(layer.padding, str)  # `_known` leaves those out
    pad_h, pad_w = layer.padding  # strided windows are copied once; F.unfold is several times slower
    windows = F.pad(a, (pad_w, pad_w, pad_h, pad_h)).unfold(2, kernel_h, stride_h).unfold(3, kernel_w, stride_w)
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(len(a), -1, layer.weight[0].numel())


def faithful_layers(
    model: nn.Module, params: Mapping[str, Tensor], layers: Mapping[str, Supported], x: Tensor
) -> dict[str, Supported]:
    """The layers whose gradient, put together from positions, is autograd's on a few inputs.

    A layer fails that is never called, whose weight is read elsewhere too, or whose batch axis is folded.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    outputs, uses = run_recorded(model, leaves, layers, x)
    probe = torch.cos(torch.arange(outputs.numel(), dtype=outputs.dtype, device=outputs.device))
    score = (outputs.flatten() * probe).sum()  # fixed generic weights: no output cancels another
    gradients = torch.autograd.grad(score, list(leaves.values()), retain_graph=True, materialize_grads=True)
    true = dict(zip(leaves, gradients, strict=True))
    faithful = {}
    for name, layer in layers.items():
        batched = [len(use.input) == len(x) and use.input.ndim >= 2 for use in uses[name]]
        if not batched or not all(batched):
            continue
        cotangents = layer_cotangents(layer, gradients_of(score, uses[name]))
        built = torch.einsum("nso,nsk->ok", cotangents, layer_inputs(layer, uses[name]))
        if _agrees(built, _stacked(layer, name, true)):
            faithful[name] = layer
    return faithful


def _stacked(layer: Supported, name: str, gradients: Mapping[str, Tensor]) -> Tensor:
    """Autograd's ``[dW, db]`` as a matrix (o, k)."""
    prefix = f"{name}." if name else ""
    weight = gradients[prefix + "weight"].flatten(1)
    return weight if layer.bias is None else torch.cat([weight, gradients[prefix + "bias"][:, None]], dim=1)


def _agrees(built: Tensor, true: Tensor) -> bool:
    tolerance = torch.finfo(true.dtype).eps ** 0.5  # far above rounding, far below any structural mistake
    return bool((built - true).norm() <= tolerance * true.norm())
