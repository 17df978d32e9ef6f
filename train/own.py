"""Functions of the user's own, by import path, and the data that they return; every misfit is one line."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ridgescope.train.errors import UserError, first_line

Part = tuple[Tensor, Tensor]  # inputs (n, ...), labels (n,) or targets (n, C)


def imported(path: str) -> Callable[..., Any]:
    """What ``package.module:name`` stands for; modules of the working folder count. Raises ``UserError``."""
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"{path!r} is no import path; write package.module:factory, e.g. torchvision.models:resnet18")
    see_working_folder()
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's module may fail in any way
        raise UserError(f"cannot import {module} for {path}: {type(error).__name__}: {first_line(error)}") from error
    if not callable(getattr(found, name, None)):
        raise UserError(f"{module} has no callable {name}; it has {', '.join(_public(found)) or 'none'}")
    return getattr(found, name)


def see_working_folder() -> None:
    """Let modules of the working folder be imported, as ``python -m`` does and a console script does not."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def own_data(path: str, draw: int = 0) -> tuple[list[Part], int | None]:
    """The (inputs, targets) that a function returns, or its training and test parts if it returns four; and how many
    classes there are.

    A function with an argument ``draw`` is given the number of the training set. Integer targets of one axis are class
    labels and become int64 in 0..C-1; others become float64 (n, C), and there are no classes.
    """
    function = imported(path)
    try:
        values = function(draw=draw) if "draw" in inspect.signature(function).parameters else function()
        tensors = [torch.as_tensor(value).detach().cpu() for value in values]
    except Exception as error:
        raise UserError(f"{path} did not return data: {type(error).__name__}: {first_line(error)}") from error
    if len(tensors) not in (2, 4):
        raise UserError(
            f"{path} returned {len(tensors)} parts; return (inputs, targets) or (train inputs, train targets, test "
            "inputs, test targets)"
        )
    if any(tensor.ndim == 0 for tensor in tensors):
        raise UserError(f"{path} returned single numbers; inputs must be (n, ...), targets (n,) or (n, C)")
    parts = list(zip(map(_as_inputs, tensors[::2]), map(_as_targets, tensors[1::2]), strict=True))
    for inputs, targets in parts:
        if len(inputs) != len(targets):
            raise UserError(f"{path} returned {len(inputs)} inputs with {len(targets)} targets; give one for each")
        if inputs.numel() == 0 or inputs.ndim < 2:
            raise UserError(f"{path} returned inputs of shape {tuple(inputs.shape)}; they must be (n, ...)")
        for name, values in (("inputs", inputs), ("targets", targets)):
            if not bool(torch.isfinite(values).all()):
                raise UserError(f"{path} returned {name} with NaN or infinity; clean the data first")
    if len({targets.shape[1:] for _, targets in parts}) > 1 or len({inputs.shape[1:] for inputs, _ in parts}) > 1:
        raise UserError(f"{path} returned training and test points of other shapes; give them the same")
    return parts, _number_of_classes(torch.cat([targets for _, targets in parts]), path)


def _number_of_classes(labels: Tensor, path: str) -> int | None:
    if labels.dtype.is_floating_point:
        return None
    classes = int(labels.max()) + 1
    if int(labels.min()) < 0 or classes < 2:
        raise UserError(f"{path} returned class labels from {int(labels.min())} to {classes - 1}; use 0..C-1, C > 1")
    return classes


def _as_inputs(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _as_targets(values: Tensor) -> Tensor:
    if values.ndim == 1 and not values.dtype.is_floating_point:
        return values.long()
    return values.double().reshape(len(values), -1)


def _public(module: Any) -> list[str]:
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return names[:8]
