"""Files that are never half written: a temporary neighbour, flushed to disk, then renamed over the name."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgescope.train.errors import UserError

if TYPE_CHECKING:  # whoever only looks at JSON need not wait for torch
    from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write(temporary)`` and rename; readers see the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); free space or choose output=FOLDER"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    detached = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def save(temporary: Path) -> None:
        try:
            save_file(detached, temporary, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    write_atomically(path, save)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} ({error}); the run is damaged: delete its folder and run it again"
        ) from error


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """safetensors only: nothing that is loaded can run code."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for a truncated file
        raise UserError(
            f"cannot read {path} ({error}); the run is damaged: delete its folder and run it again"
        ) from error
