"""Networks, checkpoints and data that are not ours: what fits is used, what does not is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ridgescope.analysis.audit_attribution import attribute_kernels
from ridgescope.analysis.foreign import build, load_points, load_weights, trained_files
from ridgescope.train.errors import UserError
from ridgescope.train.own import imported

SOURCE = """
import torch
from torch import nn

def network(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))

def no_network():
    return 3

def labels(draw=0):
    return torch.arange(24.0).view(4, 6) + draw, torch.tensor([0, 1, 2, 1])

def split():
    x = torch.ones(4, 6)
    return x, torch.arange(4.0), 2 * x[:2], torch.tensor([1.0, 5.0])

def uneven():
    return torch.ones(4, 6), torch.ones(3)

def three():
    return 1, 2, 3
"""


@pytest.fixture
def there(own_module: Callable[[str, str], Path]) -> Path:
    return own_module("theirs", SOURCE)


def test_a_factory_is_seeded_and_its_checkpoint_comes_back(there: Path) -> None:
    one, same, other = (build("theirs:network", {"width": 5}, seed, torch.float64) for seed in (0, 0, 1))
    torch.testing.assert_close(one.state_dict(), same.state_dict())
    assert not torch.equal(one[1].weight, other[1].weight)  # type: ignore[index, union-attr]
    save_file(one.state_dict(), there / "one.safetensors")
    torch.save({"state_dict": one.state_dict()}, there / "one.pt")
    for name in ("one.safetensors", "one.pt"):
        fresh = build("theirs:network", {"width": 5}, 7, torch.float64)
        load_weights(fresh, there / name)
        torch.testing.assert_close(fresh.state_dict(), one.state_dict())


def test_labels_become_centred_one_hot_and_numbers_are_centred(there: Path) -> None:
    given = load_points("theirs:labels", 2, torch.float64)
    assert given.inputs[0, 0] == 2.0  # the draw reached the function
    torch.testing.assert_close(given.targets.sum(1), torch.zeros(4, dtype=torch.float64))
    assert given.points is None
    points = load_points("theirs:split", 0, torch.float64).points
    assert points is not None
    torch.testing.assert_close(points.train_targets[:, 0], torch.arange(4.0).double() - 2.0)
    assert points.test_targets[:, 0].tolist() == [-1.0, 3.0]


def test_every_misfit_is_one_line(there: Path) -> None:
    network = build("theirs:network", {}, 0, torch.float64)
    wider = build("theirs:network", {"width": 9}, 0, torch.float64)
    save_file(wider.state_dict(), there / "wider.safetensors")
    save_file({"other": torch.ones(1)}, there / "other.safetensors")
    torch.save(nn.Linear(2, 2), there / "module.pt")
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: imported("theirs"), "'theirs' is no import path; write package.module:factory"),
        (lambda: imported("nowhere:x"), "cannot import nowhere"),
        (lambda: imported("theirs:x"), "theirs has no callable x; it has network"),
        (lambda: build("theirs:no_network", {}, 0, torch.float64), "returned int"),
        (lambda: build("theirs:network", {"depth": 3}, 0, torch.float64), "unexpected keyword argument 'depth'"),
        (lambda: load_weights(network, there / "none.pt"), "does not exist"),
        (lambda: load_weights(network, there / "wider.safetensors"), r"1.bias is \(9,\), not \(8,\)"),
        (lambda: load_weights(network, there / "other.safetensors"), "lacks 1.bias, .* and 1 more; has no place for"),
        (lambda: load_weights(network, there / "module.pt"), "as weights only"),
        (lambda: load_points("theirs:uneven", 0, torch.float64), "4 inputs with 3 targets"),
        (lambda: load_points("theirs:three", 0, torch.float64), "returned 3 parts"),
        (lambda: trained_files(there / "none"), "is not a folder"),
        (lambda: trained_files(there), "holds no checkpoint named like"),
    )
    for call, message in calls:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_attribution_of_kernels_recovers_the_width_that_the_seeds_share() -> None:
    """Random features of width 60: the mean over seeds stands in for infinite width, and the terms follow theory."""
    generator = torch.Generator().manual_seed(0)
    eta = torch.arange(1, 401, dtype=torch.float64) ** -1.4
    x = torch.randn(400, 400, generator=generator, dtype=torch.float64) * eta.sqrt()
    targets = x @ torch.randn(400, 1, generator=generator, dtype=torch.float64)
    grams = []
    for _ in range(6):
        z = x @ torch.randn(400, 60, generator=generator, dtype=torch.float64) / 60**0.5
        grams.append(z @ z.T)
    rows = attribute_kernels(grams, targets, size=100, ridge=1e-2, num_draws=6)
    terms = {row["term"]: row for row in rows}
    for name in ("risk", "bias", "initialisation variance"):
        assert abs(terms[name]["z"]) < 3, name
    assert terms["initialisation variance"]["predicted"] > 0.02 * terms["risk"]["predicted"]
    with pytest.raises(UserError, match="2 seeds and 6 draws cannot be split"):
        attribute_kernels(grams[:2], targets, size=100, ridge=1e-2, num_draws=6)
