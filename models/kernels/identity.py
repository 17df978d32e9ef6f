"""The name of a kernel by its content: equal names mean equal numbers, so a kernel found by name can be reused.

The network is named by its weights and buffers, by the settings of its modules (a scale, an activation) and by the
code of their classes; the kernel by the inputs, the options and the code that computes it. Functions that a network
of yours calls from elsewhere are not seen: after changing one, give a new path or clean the store.
"""

import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

import ridgescope


def kernel_identity(
    model: nn.Module, params: Mapping[str, Tensor], inputs: Iterable[Tensor | None], options: Mapping[str, Any]
) -> str:
    """64 hexadecimal digits. Cost: one pass over weights and inputs."""
    digest = hashlib.sha256()
    facts = [ridgescope.__version__, _code_of_models(), _plain(options), _modules(model)]
    digest.update(json.dumps(facts).encode())
    tensors = {f"{name} of the model": value for name, value in [*model.named_buffers(), *params.items()]}
    tensors |= {f"x{i + 1}": x for i, x in enumerate(inputs) if x is not None}
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        for part in value.detach().reshape(-1).split(2**22):  # a GPU's tensors come over in parts
            digest.update(part.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _modules(model: nn.Module) -> list[Any]:
    """``training`` makes no difference to a network that has a kernel, and what begins with _ is torch's own."""
    found = []
    for name, module in model.named_modules():
        settings = {key: value for key, value in vars(module).items() if key[0] != "_" and key != "training"}
        found.append([name, _source(type(module)), _plain(settings)])
    return found


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """A setting as JSON: functions by their code, objects by their attributes, nothing by its address."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    if isinstance(value, list | tuple):
        return [_plain(item, above) for item in value]
    if isinstance(value, Mapping):
        return sorted([repr(key), _plain(item, above)] for key, item in value.items())
    if isinstance(value, Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, functools.partial):
        return [_plain(value.func, above), _plain(value.args, above), _plain(value.keywords, above)]
    if isinstance(value, nn.Module | type):
        return _source(value if isinstance(value, type) else type(value))
    if inspect.isfunction(value):
        cells = inspect.getclosurevars(value).nonlocals
        return [value.__qualname__, _plain([value.__code__, value.__defaults__, cells], above)]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), repr(value.co_names), _plain(value.co_consts, above)]
    if hasattr(value, "__qualname__"):  # built in, or torch's
        return f"{value.__module__}.{value.__qualname__}"
    return [_source(type(value)), _plain(vars(value), above) if hasattr(value, "__dict__") else repr(value)]


def _source(kind: type) -> list[str]:
    """The classes it is made of and their code, of torch the version."""
    return [text for base in kind.__mro__[:-1] for text in (f"{base.__module__}.{base.__qualname__}", _code_of(base))]


def _code_of(kind: type) -> str:
    if kind.__module__.partition(".")[0] == "torch":
        return torch.__version__
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()
    except (OSError, TypeError):  # built in, or typed into a console
        return ""


@functools.cache
def _code_of_models() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
