"""Splits, targets and normalisation; real images where they are on disk, and files that are damaged."""

import gzip
import itertools
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from ridgescope.train.data import PreparedData, RidgeData, encode_targets, hash_seed, prepare_data
from ridgescope.train.errors import UserError
from ridgescope.train.sources import load_source


def digits(**changes: Any):  # type: ignore[no-untyped-def]
    settings: dict[str, Any] = {"train_size": 50, "pool_size": 300, "test_size": 200, "num_draws": 3}
    return prepare_data("digits", **(settings | changes))


def test_pool_and_test_are_disjoint_and_training_points_come_from_the_pool() -> None:
    splits = digits().splits
    assert not set(splits.pool.tolist()) & set(splits.test.tolist())
    assert splits.train.shape == (3, 50)
    assert int(splits.train.max()) < 300
    assert all(len(set(row.tolist())) == 50 for row in splits.train)


def test_the_same_seed_gives_the_same_splits_and_another_does_not() -> None:
    assert digits().splits.hashes() == digits().splits.hashes()
    assert digits().splits.hashes()["train_0"] != digits(seed=1).splits.hashes()["train_0"]


def test_a_larger_training_set_adds_points_to_the_smaller() -> None:
    torch.testing.assert_close(digits(train_size=80).splits.train[:, :50], digits().splits.train)


def test_unit_norm_inputs_have_unit_mean_square() -> None:
    data = digits()
    torch.testing.assert_close(data.pool_inputs.square().mean((1, 2, 3)), torch.ones(300, dtype=torch.float64))


def test_centring_uses_the_pool_alone() -> None:
    data = digits(unit_norm=False)
    assert float(data.pool_inputs.mean(0).abs().max()) < 1e-12
    assert float(data.test_inputs.mean(0).abs().max()) > 1e-3


def test_one_hot_targets_sum_to_zero_and_have_the_power_of_a_uniform_class() -> None:
    targets = encode_targets(torch.arange(10), 10, "one_hot", torch.float64)
    torch.testing.assert_close(targets.sum(1), torch.zeros(10, dtype=torch.float64))
    torch.testing.assert_close(targets.square().sum(1), torch.full((10,), 0.9, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "expected"), [("binary", [-1, -1, 1, 1]), ("parity", [1, -1, 1, -1])])
def test_signed_targets(kind: Any, expected: list[float]) -> None:
    assert encode_targets(torch.arange(4), 4, kind, torch.float64)[:, 0].tolist() == expected


def test_label_noise_adds_the_stated_variance_over_outputs() -> None:
    clean, noisy = digits(), digits(label_noise=0.5)
    added = (noisy.pool_targets - clean.pool_targets).square().sum(1)
    # 300 points with 10 outputs: the mean of a chi-square with 3000 degrees of freedom, 4 standard errors
    assert abs(float(added.mean()) - 0.5) < 4 * 0.5 * (2 / 3000) ** 0.5


def test_flipped_labels_are_all_wrong_and_as_many_as_asked() -> None:
    clean, flipped = digits(), digits(label_flip=0.3)
    changed = (clean.pool_targets != flipped.pool_targets).any(1).double()
    assert abs(float(changed.mean()) - 0.3) < 4 * (0.3 * 0.7 / 300) ** 0.5


def test_neighbouring_seeds_do_not_share_a_stream() -> None:
    assert len({hash_seed(s, kind) for s in range(50) for kind in ("init", "draw")}) == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": 400}, "data.train_size=400 > data.pool_size=300"),
        ({"pool_size": 1790}, "data.pool_size=1790 \\+ data.test_size=200 > 1797"),
        ({"train_size": 0}, "data.train_size=0 must be at least 1"),
        ({"num_draws": 0}, "num_draws=0"),
        ({"target": "onehot"}, "data.target='onehot' is unknown; choose one_hot"),
        ({"label_flip": 1.5}, "data.label_flip=1.5"),
        ({"label_noise": -1.0}, "data.label_noise=-1.0 is a variance"),
        ({"root": "/nowhere"}, None),
    ],
)
def test_impossible_settings_name_the_value_and_the_fix(changes: dict[str, Any], message: str | None) -> None:
    if message is None:  # digits need no files
        assert len(digits(**changes).pool_labels) == 300
        return
    with pytest.raises(UserError, match=message):
        digits(**changes)


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown data set 'imagenet'; choose one of digits, fashion_mnist"):
        load_source("imagenet")


def write_idx(folder: Path, name: str, shape: tuple[int, ...], values: bytes, packed: bool = True) -> None:
    raw = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values
    if packed:
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
    else:
        (folder / name).write_bytes(raw)


def write_mnist(folder: Path, count: int = 6) -> None:
    for part in ("train", "t10k"):
        pixels = bytes(range(count * 4))
        write_idx(folder, f"{part}-images-idx3-ubyte", (count, 2, 2), pixels, packed=part == "train")
        write_idx(folder, f"{part}-labels-idx1-ubyte", (count,), bytes(range(count)))


def test_files_on_disk_are_read_packed_or_not(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    source = load_source("mnist", root=str(tmp_path))
    assert source.train.inputs.shape == (6, 1, 2, 2)
    assert source.train.inputs[1, 0].flatten().tolist() == [4, 5, 6, 7]
    assert source.test.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is truncated or damaged.*fetch it again"):
        load_source("mnist", root=str(tmp_path))


def test_a_file_with_too_few_images_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path, "train-images-idx3-ubyte", (6, 2, 2), bytes(20))
    with pytest.raises(UserError, match="truncated or damaged"):
        load_source("mnist", root=str(tmp_path))


def test_a_data_set_that_cannot_be_had_says_what_to_do_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data set cifar10 is not under .* point data.root=FOLDER") as caught:
        load_source("cifar10", root=str(tmp_path), download=False)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_from_debians_files(fashion_mnist: Path) -> None:
    data = prepare_data(
        "fashion_mnist", root=str(fashion_mnist), train_size=20, pool_size=100, test_size=50, num_draws=2
    )
    assert data.in_shape == (1, 28, 28)
    assert data.num_classes == data.num_outputs == 10
    assert len(set(data.pool_labels.tolist())) == 10


def batches(data: PreparedData, count: int, **settings: int) -> list[list[int]]:
    loader = RidgeData(data, **settings).train_dataloader()
    return [positions.tolist() for positions in itertools.islice(loader, count)]


def test_a_full_batch_repeats_and_a_minibatch_epoch_visits_each_point_once() -> None:
    data = digits()
    assert batches(data, 3) == [list(range(50))] * 3
    two_epochs = batches(data, 10, batch_size=10)
    for epoch in (two_epochs[:5], two_epochs[5:]):
        assert sorted(itertools.chain(*epoch)) == list(range(50))
    assert two_epochs[:5] != two_epochs[5:]


def test_batches_continue_at_any_step_as_if_they_had_never_stopped() -> None:
    data = digits()
    everything = batches(data, 20, batch_size=15)  # three batches an epoch, five points left out of each
    for first in (1, 2, 3, 7):
        assert batches(data, 20 - first, batch_size=15, first_step=first) == everything[first:]
