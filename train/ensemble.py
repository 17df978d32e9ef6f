"""Many networks of one architecture as one: member parameters are the rows of a matrix.

Letters: E members, p parameters of one network, n inputs, C outputs, S initialisation seeds.
The predictor of a member is ``f = alpha (h(theta) - h(theta_0))`` with laziness ``alpha`` (Chizat, Oyallon,
Bach 2019, arXiv:1812.07956): alpha -> infinity is kernel regression with the kernel at initialisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd

from ridgescope.train.data import hash_seed
from ridgescope.train.errors import UserError, first_line

Forward = Callable[[dict[str, Tensor], Tensor], Tensor]
"""``(parameters (E, *shape) by name, each member's inputs (E, n, ...)) -> (E, n, C)``"""


@runtime_checkable
class NetworkFactory(Protocol):
    """Builds one network; every other argument (width, depth, ...) is already bound."""

    def __call__(
        self, *, in_shape: tuple[int, ...], num_outputs: int, generator: torch.Generator, dtype: torch.dtype
    ) -> nn.Module: ...


@dataclass(frozen=True)
class Member:
    """What tells one network of an ensemble from another: initialisation seed, data draw, ridge."""

    seed: int
    draw: int
    ridge: float


def design_members(design: str, seeds: Sequence[int], num_draws: int, ridges: Sequence[float]) -> list[Member]:
    """``paired``: replicate i has seed i and draw i (the shorter list starts again), so that replicates are
    independent; ``crossed``: every seed with every draw, from which variance components can be read."""
    if design == "paired":
        pairs = [(seeds[i % len(seeds)], i % num_draws) for i in range(max(len(seeds), num_draws))]
    elif design == "crossed":
        pairs = [(seed, draw) for seed in seeds for draw in range(num_draws)]
    else:
        raise UserError(f"design={design!r} is unknown; choose paired or crossed")
    return [Member(seed, draw, float(ridge)) for seed, draw in pairs for ridge in sorted(ridges)]


class FlatNetwork:
    """One architecture whose parameters live in a vector: ``names``, ``shapes``, and the map back."""

    def __init__(self, network: nn.Module) -> None:
        self.skeleton = network.to("meta")
        parameters = dict(self.skeleton.named_parameters())
        self.names = list(parameters)
        self.shapes = [tuple(p.shape) for p in parameters.values()]
        self.sizes = [p.numel() for p in parameters.values()]
        # the empirical kernel divided by this is O(1) in width; 1 for a network that does not say
        self.kernel_scale = float(getattr(network, "kernel_scale", 1.0))
        self.width = int(getattr(network, "width", 1))
        self.num_layers = sum(len(shape) > 1 for shape in self.shapes)

    @property
    def richness(self) -> float:
        """gamma of :mod:`ridgescope.train.optimisers` at alpha = 1: how far features move for f to move by one."""
        return (min(1.0, self.kernel_scale) * self.width) ** -0.5

    @property
    def num_parameters(self) -> int:
        return sum(self.sizes)

    def flatten(self, parameters: dict[str, Tensor]) -> Tensor:
        """Named parameters (E, *shape) to rows (E, p)."""
        return torch.cat([parameters[name].flatten(1) for name in self.names], dim=1)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Rows (E, p) to named parameters (E, *shape). One split, so that its backward is one concatenation."""
        parts = torch.split(theta, self.sizes, dim=1)
        return {name: part.view(-1, *shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """h: parameters (E, p) and each member's own inputs (E, n, ...) to (E, n, C)."""
        return self.apply(self.unflatten(theta), inputs)

    def apply(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """The same of named parameters (E, *shape)."""

        def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.skeleton, parameters, (x,))

        return vmap(one)(parameters, inputs)

    def activation_sizes(self, theta: Tensor, x: Tensor) -> list[int]:
        """Bytes of each array that autograd keeps for the backward pass of one member, theta (1, p), for each input
        like x (1, ...).

        The differences between two inputs and one: parameters, and what derives from them alone, drop out.
        """
        theta = theta.detach().clone().requires_grad_()
        one, two = (self._kept_bytes(theta, inputs[None]) for inputs in (x.clone(), torch.cat([x, x])))
        return [more - less for less, more in zip(one, two, strict=True)]

    def _kept_bytes(self, theta: Tensor, inputs: Tensor) -> list[int]:
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()  # views share one
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            outputs = self.outputs(theta, inputs)
        del outputs  # until here the graph kept them all alive: no address was used twice
        kept.pop(inputs.untyped_storage().data_ptr(), None)  # held anyway
        return list(kept.values())


def initialise(
    factory: NetworkFactory,
    *,
    in_shape: tuple[int, ...],
    num_outputs: int,
    seeds: Sequence[int],
    dtype: torch.dtype,
) -> tuple[FlatNetwork, Tensor]:
    """The architecture and the initial parameters (S, p) of each seed."""
    rows, flat = [], None
    for seed in seeds:
        generator = torch.Generator().manual_seed(hash_seed(seed, "init"))
        network = factory(in_shape=in_shape, num_outputs=num_outputs, generator=generator, dtype=dtype)
        rows.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        if flat is None:
            _require_trainable(network, torch.zeros(1, *in_shape, dtype=dtype), num_outputs)
            flat = FlatNetwork(network)
    if flat is None:
        raise UserError("num_seeds=0 trains nothing; choose at least 1")
    return flat, torch.stack(rows)


def _require_trainable(network: nn.Module, x: Tensor, num_outputs: int) -> None:
    name = type(network).__name__
    if any(True for _ in network.buffers()):
        raise UserError(
            f"{name} has buffers (batch statistics?), which couple the points of a batch; train without them"
        )
    if any(isinstance(module, _DropoutNd) and module.p > 0 for module in network.modules()):
        raise UserError(f"{name} has dropout, and no optimum that could be certified; train with p=0")
    outputs = tried(network, x, name)
    if not isinstance(outputs, Tensor) or outputs.shape != (1, num_outputs):
        made = f"outputs of shape {tuple(outputs.shape[1:])}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(f"{name} makes {made} of a point; the targets are ({num_outputs},)")


def tried(network: nn.Module, inputs: Tensor, name: str) -> Any:
    """What a network makes of inputs (n, ...); ``UserError`` in one line, whatever a user's module raises."""
    try:
        with torch.no_grad():
            return network(inputs)
    except Exception as error:
        shape = tuple(inputs.shape[1:])
        raise UserError(f"{name} cannot take inputs of shape {shape}: {first_line(error)}") from error


def members_per_program(bytes_per_member: int, memory: int) -> int:
    """How many members fit into ``memory`` bytes; at least one."""
    return max(1, memory // max(1, bytes_per_member))


def split_programs(members: Sequence[Member], size: int) -> list[list[Member]]:
    """Cut into programs of at most ``size`` members, keeping the ridges of one (seed, draw) together where they
    fit, because they share the kernel at initialisation."""
    ordered = sorted(members, key=lambda m: (m.seed, m.draw))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]
