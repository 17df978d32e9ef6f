"""Networks, checkpoints and data that are not ours, by import path; every misfit is one line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ridgescope.analysis.audit_networks import Points
from ridgescope.train.data import encode_targets
from ridgescope.train.errors import UserError, first_line
from ridgescope.train.files import read_tensors
from ridgescope.train.own import imported, own_data


def build(path: str, arguments: Mapping[str, Any], seed: int, dtype: torch.dtype) -> nn.Module:
    """The module that a factory returns with torch seeded by ``seed``, in evaluation mode and ``dtype``."""
    factory = imported(path)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = factory(**arguments)
    except Exception as error:
        raise UserError(f"{path} failed with arguments {dict(arguments)}: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{path} returned {type(network).__name__}; it must return a torch.nn.Module")
    return network.to(dtype).eval()


def load_weights(network: nn.Module, path: Path) -> None:
    """Put a checkpoint (.safetensors, or .pt/.pth read with ``weights_only``) into ``network``.

    A dictionary under ``state_dict`` or ``model`` is unwrapped. Raises ``UserError`` where it does not fit.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    state: dict[str, Any] = read_tensors(path) if path.suffix == ".safetensors" else _weights_only(path)
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    ]
    problems = [
        f"{word} {_some(names)}" for word, names in (("lacks", missing), ("has no place for", unexpected)) if names
    ]
    problems += [_some(sorted(shapes))] if shapes else []
    if problems:
        raise UserError(f"checkpoint {path.name} does not fit {type(network).__name__}: {'; '.join(problems)}")
    network.load_state_dict(state)


def _weights_only(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"cannot read {path} as weights only ({first_line(error)}); save its state_dict(), best as .safetensors"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not the dictionary of a state_dict")
    return state


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_NAME = re.compile(r"seed(\d+)\D+draw(\d+)")


def trained_files(folder: Path) -> list[tuple[int, int, Path]]:
    """(seed, draw, file) of each ``seed3-draw5.safetensors`` (or .pt, .pth) in a folder, sorted."""
    if not folder.is_dir():
        raise UserError(f"trained={folder} is not a folder; put seed0-draw0.safetensors and so on into one")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".pt", ".pth")]
    found = [(match, path) for path in files if (match := _NAME.search(path.stem))]
    if not found:
        raise UserError(f"{folder} holds no checkpoint named like seed0-draw0.safetensors")
    return sorted((int(match[1]), int(match[2]), path) for match, path in found)


@dataclass(frozen=True)
class Given:
    """What a user's data function returned: points without a split, or training and test points."""

    inputs: Tensor
    targets: Tensor
    points: Points | None


def load_points(path: str, draw: int, dtype: torch.dtype) -> Given:
    """Call a function that returns (inputs, targets) or (train inputs, train targets, test inputs, test targets).

    A function with an argument ``draw`` is given the number of the training set. Integer targets of one axis are
    class labels and become one-hot minus 1/C; other targets are centred by the mean of all.
    """
    parts, classes = own_data(path, draw)
    inputs = torch.cat([inputs for inputs, _ in parts]).to(dtype)
    targets = torch.cat([targets for _, targets in parts])
    encoded = (
        targets - targets.mean(0) if classes is None else encode_targets(targets, classes, "one_hot", torch.float64)
    )
    if len(parts) == 1:
        return Given(inputs, encoded, None)
    n = len(parts[0][0])
    return Given(inputs, encoded, Points(inputs[:n], encoded[:n].to(dtype), inputs[n:], encoded[n:].to(dtype)))
