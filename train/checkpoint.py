"""Where a program stands between two steps, as one file: all that is needed to go on and end bit-identical on a CPU.

No generator is among it: every batch is drawn from a seed and the number of its step, so the step is enough. The
file is safetensors: loading it runs no code. It appears whole or not at all, and a checkpoint of another config or of
other members is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ridgescope.train.ensemble import Member
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_tensors

_FORMAT = 1
_PART = {"training": "training.", "optimiser": "optimiser."}  # prefixes of the tensors' names


@dataclass(frozen=True)
class Checkpoint:
    """``step`` steps are done; ``training`` and ``optimiser`` are the tensors of the module and of its optimiser."""

    step: int
    training: dict[str, Tensor]
    optimiser: dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint of one program: ``identity`` names the config, ``members`` the networks that it belongs to."""

    path: Path
    identity: str
    members: Sequence[Member]

    def write(self, checkpoint: Checkpoint) -> None:
        tensors = {
            prefix + name: value for part, prefix in _PART.items() for name, value in getattr(checkpoint, part).items()
        }
        write_tensors(self.path, tensors, {"ridgescope": json.dumps(self._header() | {"step": checkpoint.step})})

    def read(self, device: torch.device | str = "cpu") -> Checkpoint | None:
        """None where there is none; ``UserError`` for one that is damaged or belongs to something else."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt", device=str(device)) as file:
                header = json.loads(file.metadata()["ridgescope"])
                # copied: what the file gives is aligned as it lies there, and products of matrices may then sum in
                # another order than those of a run without an interruption
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            step = int(header.pop("step"))
        except Exception as error:  # safetensors raises its own type for a truncated file
            raise UserError(f"cannot read {self.path} ({error}); delete it to train this program again") from error
        for key, ours in self._header().items():
            if header.get(key) != ours:
                raise UserError(
                    f"{self.path} is a checkpoint of another run ({key} {_short(header.get(key))}, here "
                    f"{_short(ours)}); delete it to train this program again"
                )
        parts = {
            part: {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for part, prefix in _PART.items()
        }
        return Checkpoint(step, **parts)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _header(self) -> dict[str, object]:
        return {"format": _FORMAT, "config": self.identity, "members": [asdict(member) for member in self.members]}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
