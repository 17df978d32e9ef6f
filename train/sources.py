"""Where points come from: scikit-learn's digits, torchvision's datasets, files on disk, or a function of the user's.

A source is a pool of points for training and one of test points, as ``uint8`` or float arrays with integer labels or
real targets; images are (n, channels, height, width). Nothing is scaled, centred or shuffled here.
"""

import gzip
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ridgescope.train.errors import UserError, first_line
from ridgescope.train.own import own_data

# torchvision's class, and the folder that Debian-style packages use under share/datasets
_IDX = {"fashion_mnist": "FashionMNIST", "mnist": "MNIST", "kmnist": "KMNIST"}
_TORCHVISION = {**_IDX, "cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}
DATASETS = ("digits", *_TORCHVISION)


@dataclass(frozen=True)
class Samples:
    """``inputs`` (n, ...), ``labels`` (n,) int64 in 0..num_classes-1; or real targets (n, C), and no classes."""

    inputs: Tensor
    labels: Tensor
    num_classes: int | None


@dataclass(frozen=True)
class Source:
    """``train`` feeds the pool, ``test`` the test set; ``shared`` when both must be cut from one set (digits)."""

    train: Samples
    test: Samples
    shared: bool


def load_source(name: str, *, root: str | None = None, download: bool = True) -> Source:
    """Load a data set by name, or call the function ``package.module:function`` (`own_data`).

    ``root`` is a folder with the files, in torchvision's layout or flat; without it the usual places are
    searched (``RIDGESCOPE_DATA``, ``share/datasets``) and torchvision downloads to the user's cache.

    Raises ``UserError``, in one line, where the data set is unknown, cannot be had, or is damaged.
    """
    if name == "digits":
        return _digits()
    if ":" in name:
        if root is not None:
            raise UserError(f"data.root={root} is for data sets with files; {name} is a function, leave data.root out")
        return _own(name)
    if name not in _TORCHVISION:
        raise UserError(
            f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}, "
            "or data=own data.name=package.module:function"
        )
    if root is not None and not Path(root).is_dir():
        raise UserError(f"data.root={root} is not a folder; create it, or leave data.root out")
    if name in _IDX:
        folder = _idx_folder(name, root)
        if folder is not None:
            return Source(_read_idx(folder, "train"), _read_idx(folder, "t10k"), shared=False)
    return _torchvision(name, root, download)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = Samples(
        torch.from_numpy(data.images.astype(np.float64) / 16.0)[:, None],
        torch.from_numpy(data.target.astype(np.int64)),
        10,
    )
    return Source(images, images, shared=True)


def _own(path: str) -> Source:
    parts, classes = own_data(path)
    samples = [Samples(inputs, targets, classes) for inputs, targets in parts]
    return Source(samples[0], samples[-1], shared=len(samples) == 1)


def default_root() -> Path:
    """Where downloads go: ``RIDGESCOPE_DATA``, or the user's cache."""
    if configured := os.environ.get("RIDGESCOPE_DATA"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ridgescope" / "data"


def _idx_folder(name: str, root: str | None) -> Path | None:
    for folder in _candidates(name, root):
        if any((folder / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
            return folder
    return None


def _candidates(name: str, root: str | None) -> Iterator[Path]:
    if root is None:
        share = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        bases = [default_root(), *(Path(entry) for entry in share.split(":"))]
    else:
        bases = [Path(root)]
    for base in bases:
        if root is not None:
            yield base
        yield base / name.replace("_", "-")
        yield base / "datasets" / name.replace("_", "-")
        yield base / _IDX[name] / "raw"


def _read_idx(folder: Path, part: str) -> Samples:
    images = _idx_array(folder, f"{part}-images-idx3-ubyte", 3)
    labels = _idx_array(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise UserError(f"{folder} holds {len(images)} {part} images but {len(labels)} labels; fetch the files again")
    return Samples(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)), 10)


def _idx_array(folder: Path, name: str, ndim: int) -> np.ndarray:
    """The IDX format: two zero bytes, type 8 (uint8), ndim, big-endian sizes, then the bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise UserError(f"{folder / name}[.gz] is missing; put it beside the other three files")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, found = struct.unpack_from(">HBB", raw)[1:]
        shape = struct.unpack_from(f">{ndim}I", raw, 4)
        if (kind, found) != (8, ndim) or len(raw) != 4 + 4 * ndim + int(np.prod(shape)):
            raise ValueError(f"{len(raw)} bytes")
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); delete it and fetch it again") from error
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()


def _torchvision(name: str, root: str | None, download: bool) -> Source:
    import torchvision

    kind = getattr(torchvision.datasets, _TORCHVISION[name])
    place = Path(root) if root is not None else default_root()

    def part(train: bool) -> Samples:
        which: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            place.mkdir(parents=True, exist_ok=True)
            # CIFAR's archives are pickles: torchvision opens them only after their MD5 sums match
            data = kind(place, download=download, **which)
        except (OSError, RuntimeError, EOFError) as error:
            raise UserError(
                f"data set {name} is not under {place} and cannot be downloaded ({first_line(error)}); put "
                f"torchvision's files there or point data.root=FOLDER at them"
            ) from error
        labels = torch.as_tensor(np.asarray(data.labels if name == "svhn" else data.targets), dtype=torch.int64)
        return Samples(_channels_first(np.asarray(data.data)), labels, 100 if name == "cifar100" else 10)

    return Source(part(True), part(False), shared=False)


def _channels_first(images: np.ndarray) -> Tensor:
    if images.ndim == 3:  # grey
        return torch.from_numpy(images)[:, None]
    if images.shape[-1] == 3:  # CIFAR: (n, h, w, 3); SVHN already has the channels first
        images = images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))
