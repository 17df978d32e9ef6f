"""What one input tells about a network before its kernel is begun: sizes, memory, and the gradients to be met.

It passes alone, forwards and back, for autograd's own gradients. The first batch of the kernel itself is then held
against these (`Reference`), so that no other pass is spent on the question which layers are what their type says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ridgescope.models.kernels.checks import chosen_outputs
from ridgescope.models.kernels.structured.layers import Supported, Uses, run_recorded


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of a pass: of each input, and once (scaled weights, say)."""

    each: int
    once: int


@dataclass(frozen=True)
class Seen:
    """A gradient along four directions on each side, orthogonal to nothing in particular: one that agrees along them
    is equal."""

    left: Tensor  # (o, 4)
    right: Tensor  # (k, 4)
    gradient: Tensor  # (4, 4)


@dataclass(frozen=True)
class Reference:
    """Autograd's gradient of a fixed mixture of the first input's outputs, in each layer."""

    values: Tensor  # what the network returned for the first input, (1, all its outputs)
    mixture: Tensor  # (c,) weights of the outputs asked for
    gradients: Mapping[str, Seen]

    def meets(self, name: str, gradient: Tensor) -> bool:
        """Whether a layer's gradient of the mixture (o, k) is autograd's.

        It is not where the weight is read elsewhere too, or where the batch axis is folded or reordered.
        """
        seen = self.gradients[name]
        return _agrees(seen.left.T @ gradient @ seen.right, seen.gradient)

    def meets_product(self, name: str, d: Tensor, a: Tensor) -> bool:
        """The same of ``sum_s d(s) (x) a(s)``, from (s, o) and (s, k)."""
        seen = self.gradients[name]
        return _agrees((d @ seen.left).T @ (a @ seen.right), seen.gradient)


def _agrees(built: Tensor, true: Tensor) -> bool:
    tolerance = torch.finfo(true.dtype).eps ** 0.5  # far above rounding, far below any structural mistake
    return bool((built - true).norm() <= tolerance * true.norm())


@dataclass(frozen=True)
class Trial:
    outputs: list[int]  # those asked for
    values: Tensor  # what the network returned, (1, c)
    uses: Uses
    in_place: bool  # whether the network writes into what its layers return
    activations: Activations
    reference: Reference


def try_network(
    model: nn.Module,
    params: Mapping[str, Tensor],
    layers: Mapping[str, Supported],
    x: Tensor,
    outputs: Iterable[int] | None,
) -> Trial:
    """Raises ``ValueError`` where the first input's outputs are no matrix (1, c), or those asked for do not exist."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    point = x[:1].detach().clone()
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    if point.is_floating_point():
        point.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values, uses = run_recorded(model, leaves, layers, point)
    rows = chosen_outputs(outputs, values.shape[1])
    activations = _activations(leaves, point, kept)
    mixture = torch.cos(torch.arange(len(rows), dtype=values.dtype, device=values.device))  # none cancels another
    gradients = torch.autograd.grad(values[0, rows] @ mixture, list(leaves.values()), materialize_grads=True)
    true = dict(zip(leaves, gradients, strict=True))
    seen = {name: _see(_stacked(layer, name, true)) for name, layer in layers.items()}
    in_place = any(use.passed_on._version > 0 for calls in uses.values() for use in calls)
    return Trial(rows, values, uses, in_place, activations, Reference(values.detach(), mixture, seen))


def _activations(leaves: Mapping[str, Tensor], point: Tensor, kept: Iterable[Tensor]) -> Activations:
    """An upper bound: weights carry no gradient in the kernel's own passes, which keep less."""
    own = {tensor.untyped_storage().data_ptr() for tensor in leaves.values()}
    each: dict[int, int] = {}
    once: dict[int, int] = {}
    for tensor in kept:
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if place not in own:
            (each if _depends(tensor, point) else once)[place] = size
    return Activations(sum(each.values()), sum(size for place, size in once.items() if place not in each))


def _depends(tensor: Tensor, point: Tensor) -> bool:
    """Whether a kept tensor is made from the input, as far as its graph tells."""
    if tensor.grad_fn is None or not point.requires_grad:
        return True
    seen: set[Any] = set()
    todo: list[Any] = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if getattr(node, "variable", None) is point:
            return True
        seen.add(node)
        todo += [following for following, _ in node.next_functions if following is not None and following not in seen]
    return False


def _see(gradient: Tensor) -> Seen:
    generator = torch.Generator().manual_seed(0)
    # in single precision, which is drawn four times as fast
    left, right = (torch.randn(size, 4, generator=generator).to(gradient) for size in gradient.shape)
    return Seen(left, right, left.T @ gradient @ right)


def _stacked(layer: Supported, name: str, gradients: Mapping[str, Tensor]) -> Tensor:
    """Autograd's ``[dW, db]`` as a matrix (o, k)."""
    prefix = f"{name}." if name else ""
    weight = gradients[prefix + "weight"].flatten(1)
    return weight if layer.bias is None else torch.cat([weight, gradients[prefix + "bias"][:, None]], dim=1)
