"""Networks of the user's own: a plain PyTorch class is built, seeded and trained, and a misfit is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ridgescope.models import MLP
from ridgescope.train.ensemble import initialise
from ridgescope.train.errors import UserError
from ridgescope.train.networks import network_factory

SOURCE = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, in_shape, num_outputs, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(in_shape[0], width), nn.Linear(width, num_outputs)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))

def small(num_outputs):
    return nn.Linear(5, num_outputs)

def five(in_shape):
    return nn.Linear(in_shape[0], 5)

def dropped():
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

def normed():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

def nothing():
    return None

def broken():
    raise RuntimeError("no disk")
"""


@pytest.fixture(autouse=True)
def _there(own_module: Callable[[str, str], Path]) -> None:
    own_module("theirnets", SOURCE)


def rows(target: str, seeds: tuple[int, ...] = (0, 1), **arguments: object) -> torch.Tensor:
    factory = network_factory({"_target_": target, **arguments})
    return initialise(factory, in_shape=(4,), num_outputs=3, seeds=seeds, dtype=torch.float64)[1]


def test_a_plain_class_is_seeded_cast_and_given_what_it_names() -> None:
    state = torch.get_rng_state()
    parameters = rows("theirnets.Plain", width=8)
    assert parameters.shape == (2, 4 * 8 + 8 + 8 * 3 + 3)
    assert parameters.dtype == torch.float64
    assert not torch.equal(parameters[0], parameters[1])
    torch.testing.assert_close(rows("theirnets.Plain", seeds=(1, 0), width=8), parameters.flip(0), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own random numbers go on as they were


def test_our_networks_are_what_they_are_without_it() -> None:
    options = {"width": 8, "depth": 1, "activation": "erf"}
    drawn = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    made = network_factory({"_target_": "ridgescope.models.MLP", **options})(
        in_shape=(4,), num_outputs=3, generator=drawn[0], dtype=torch.float32
    )
    direct = MLP((4,), 3, width=8, depth=1, activation="erf", generator=drawn[1], dtype=torch.float32)
    torch.testing.assert_close(made.state_dict(), direct.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("theirnets.missing", "cannot make theirnets.missing: Error loading 'theirnets.missing'"),
        ("theirnets.broken", "cannot make theirnets.broken: no disk"),
        ("theirnets.nothing", "theirnets.nothing made a NoneType; it must make a torch.nn.Module"),
        ("theirnets.small", r"Linear cannot take inputs of shape \(4,\): mat1 and mat2"),
        ("theirnets.five", r"Linear makes outputs of shape \(5,\) of a point; the targets are \(3,\)"),
        ("theirnets.dropped", "Sequential has dropout, and no optimum that could be certified"),
        ("theirnets.normed", "Sequential has buffers"),
    ],
)
def test_every_misfit_is_one_line(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows(target)
    assert "\n" not in str(caught.value)


def test_an_argument_that_the_class_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"cannot make theirnets.Plain: .*unexpected keyword argument 'depth'"):
        rows("theirnets.Plain", depth=3)
