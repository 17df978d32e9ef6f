"""From a source of images to disjoint, reproducible splits of centred, normalised inputs and targets.

Letters: M pool points, T test points, P training points per draw (drawn from the pool), D draws, C outputs.
Draws are nested in P: the first P entries of a draw's permutation of the pool, so a larger P adds points.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ridgescope.train.errors import UserError
from ridgescope.train.sources import Samples, Source, load_source

TargetKind = Literal["one_hot", "binary", "parity", "values"]


@dataclass(frozen=True)
class Splits:
    """Indices into the source: ``pool`` (M,) and ``test`` (T,); ``train`` (D, P) are positions *in the pool*."""

    pool: Tensor
    test: Tensor
    train: Tensor

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each index set as little-endian int64, first 16 hex digits."""
        train = self.pool[self.train]
        parts = {"pool": self.pool, "test": self.test} | {f"train_{d}": row for d, row in enumerate(train)}
        return {name: _digest(index) for name, index in parts.items()}


@dataclass(frozen=True)
class PreparedData:
    """Pool and test points as the networks see them: inputs (n, ...), targets (n, C), labels (n,).

    Of real targets the labels are the targets as they were given, and there are no classes. ``content`` is the SHA-256
    of the points as they were given, first 16 hex digits.
    """

    pool_inputs: Tensor
    pool_targets: Tensor
    pool_labels: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    test_labels: Tensor
    splits: Splits
    num_classes: int | None
    content: str

    def hashes(self) -> dict[str, str]:
        """What a cell was trained on: of each index set, and of the points."""
        return self.splits.hashes() | {"content": self.content}

    @property
    def num_outputs(self) -> int:
        return self.pool_targets.shape[1]

    @property
    def in_shape(self) -> tuple[int, ...]:
        return tuple(self.pool_inputs.shape[1:])


def prepare_data(
    name: str,
    *,
    root: str | None = None,
    download: bool = True,
    train_size: int,
    pool_size: int,
    test_size: int,
    num_draws: int,
    centre: bool = True,
    unit_norm: bool = True,
    target: TargetKind = "one_hot",
    label_noise: float = 0.0,
    label_flip: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> PreparedData:
    """Load, split and normalise.

    ``centre`` subtracts the mean image of the pool. ``unit_norm`` scales each input to ``|x|^2 = d``, its number
    of entries (unit root mean square per entry), which makes K(x, x) constant for a fully connected network.
    Targets: ``one_hot`` minus 1/C; ``binary`` +-1 for the upper/lower half of the classes; ``parity`` +-1 for
    even/odd labels; ``values`` real targets less the mean of the pool's. ``label_noise`` adds Gaussian noise of that
    variance (summed over outputs); ``label_flip`` replaces that share of the labels by another class. Both act on
    pool and test points alike.

    Raises ``UserError`` for impossible sizes, unknown names, and data that cannot be had.
    """
    source = load_source(name, root=root, download=download)
    splits = make_splits(source, train_size, pool_size, test_size, num_draws, seed)
    given = _select(source.train, splits.pool), _select(source.test, splits.test)
    pool, test = (_scaled(samples.inputs, dtype) for samples in given)
    pool_labels, test_labels = (samples.labels for samples in given)
    if centre:
        mean = pool.mean(0)
        pool, test = pool - mean, test - mean
    if unit_norm:
        pool, test = _unit_norm(pool), _unit_norm(test)
    generator = torch.Generator().manual_seed(seed + 1)
    classes = source.train.num_classes
    _require_target(name, target, classes, label_flip)

    def targets(labels: Tensor) -> Tensor:
        if classes is None:
            clean = (labels - pool_labels.mean(0)).to(dtype)
        else:
            clean = encode_targets(_flip(labels, classes, label_flip, generator), classes, target, dtype)
        if label_noise < 0:
            raise UserError(f"data.label_noise={label_noise} is a variance; it must be >= 0")
        deviation = (label_noise / clean.shape[1]) ** 0.5
        return clean + deviation * torch.randn(clean.shape, generator=generator, dtype=torch.float64).to(dtype)

    return PreparedData(
        pool,
        targets(pool_labels),
        pool_labels,
        test,
        targets(test_labels),
        test_labels,
        splits,
        classes,
        _digest(*(values for samples in given for values in (samples.inputs, samples.labels))),
    )


def make_splits(source: Source, train_size: int, pool_size: int, test_size: int, num_draws: int, seed: int) -> Splits:
    """Disjoint pool and test indices and ``num_draws`` training sets from the pool, a function of ``seed``."""
    for name, size in (("train_size", train_size), ("pool_size", pool_size), ("test_size", test_size)):
        if size < 1:
            raise UserError(f"data.{name}={size} must be at least 1")
    if num_draws < 1:
        raise UserError(f"num_draws={num_draws} must be at least 1")
    if train_size > pool_size:
        raise UserError(
            f"data.train_size={train_size} > data.pool_size={pool_size}: training points are drawn from the pool; "
            f"lower train_size or raise pool_size"
        )
    available = len(source.train.labels)
    if source.shared and pool_size + test_size > available:
        raise UserError(
            f"data.pool_size={pool_size} + data.test_size={test_size} > {available} points of this data set; lower one"
        )
    if pool_size > available:
        raise UserError(f"data.pool_size={pool_size} > {available} points of this data set; lower it")
    if test_size > len(source.test.labels):
        raise UserError(f"data.test_size={test_size} > {len(source.test.labels)} test points; lower it")
    order = _permutation(available, seed)
    test = (
        order[pool_size : pool_size + test_size]
        if source.shared
        else _permutation(len(source.test.labels), seed)[:test_size]
    )
    draws = [_permutation(pool_size, hash_seed(seed, "draw", d))[:train_size] for d in range(num_draws)]
    return Splits(order[:pool_size], test, torch.stack(draws))


def encode_targets(labels: Tensor, num_classes: int, kind: TargetKind, dtype: torch.dtype) -> Tensor:
    """(n,) labels to (n, C) targets; see :func:`prepare_data`."""
    if kind == "one_hot":
        return torch.nn.functional.one_hot(labels, num_classes).to(dtype) - 1 / num_classes
    if kind == "binary":
        return torch.where(labels >= num_classes // 2, 1.0, -1.0).to(dtype)[:, None]
    if kind == "parity":
        return torch.where(labels % 2 == 0, 1.0, -1.0).to(dtype)[:, None]
    raise UserError(f"data.target={kind!r} is unknown; choose one_hot, binary, parity or values")


def _require_target(name: str, target: str, classes: int | None, label_flip: float) -> None:
    if classes is None and target != "values":
        raise UserError(f"the targets of {name} are real numbers, not classes; set data.target=values")
    if classes is None and label_flip != 0:
        raise UserError(
            f"data.label_flip={label_flip} is a share of class labels; {name} has real targets, set it to 0"
        )
    if classes is not None and target == "values":
        raise UserError(f"data.target=values is for real targets; {name} has class labels: one_hot, binary or parity")


def hash_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all ``parts``, so that neighbouring seeds share no random stream."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def _select(samples: Samples, index: Tensor) -> Samples:
    return Samples(samples.inputs[index], samples.labels[index], samples.num_classes)


def _scaled(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    return inputs.to(dtype) / 255 if inputs.dtype == torch.uint8 else inputs.to(dtype)


def _unit_norm(inputs: Tensor) -> Tensor:
    rms = inputs.flatten(1).square().mean(1).sqrt()
    if bool((rms == 0).any()):
        where = int((rms == 0).nonzero()[0])
        raise UserError(f"input {where} is constant zero and cannot be scaled to unit norm; set data.unit_norm=false")
    return inputs / rms.view(-1, *[1] * (inputs.ndim - 1))


def _flip(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    if not 0 <= share < 1:
        raise UserError(f"data.label_flip={share} is a share of the labels; choose 0 <= label_flip < 1")
    chosen = torch.rand(labels.shape, generator=generator) < share
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    return torch.where(chosen, (labels + shift) % classes, labels)


def _digest(*arrays: Tensor) -> str:
    """Of the numbers in little-endian order."""
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array.numpy())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()[:16]


class BatchPositions(IterableDataset[Tensor]):
    """Positions 0..P-1 of each step's batch, without end: all of them, or the batches of a fresh permutation per epoch.

    A batch is a function of the seed and the number of its step, so that training can go on from any step. Epochs
    drop the remainder of P / batch_size.
    """

    def __init__(self, num_samples: int, batch_size: int | None, seed: int, first_step: int = 0) -> None:
        super().__init__()
        self.num_samples, self.batch_size, self.seed, self.first_step = num_samples, batch_size, seed, first_step
        self.steps_per_epoch = 1 if batch_size is None else num_samples // batch_size

    def __iter__(self) -> Iterator[Tensor]:
        everything = torch.arange(self.num_samples)
        for epoch in itertools.count(self.first_step // self.steps_per_epoch):
            if self.batch_size is None:
                yield everything
                continue
            order = _permutation(self.num_samples, hash_seed(self.seed, "epoch", epoch))
            skipped = max(0, self.first_step - epoch * self.steps_per_epoch)
            yield from order.split(self.batch_size)[skipped : self.steps_per_epoch]


class RidgeData(L.LightningDataModule):
    """Training sets of all draws, side by side: ``inputs`` (D, P, ...), ``targets`` (D, P, C).

    A batch is positions in these sets, (b,); it is full when ``batch_size`` is None. Training begins with the batch
    of step ``first_step``.
    """

    def __init__(
        self, data: PreparedData, *, batch_size: int | None = None, seed: int = 0, first_step: int = 0
    ) -> None:
        super().__init__()
        num_samples = data.splits.train.shape[1]
        if batch_size is not None and not 1 <= batch_size <= num_samples:
            raise UserError(f"batch_size={batch_size} must lie between 1 and train_size={num_samples}")
        self.inputs = data.pool_inputs[data.splits.train]  # (D, P, c, h, w)
        self.targets = data.pool_targets[data.splits.train]  # (D, P, C)
        self.batches = BatchPositions(num_samples, batch_size, seed, first_step)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.batches, batch_size=None)
