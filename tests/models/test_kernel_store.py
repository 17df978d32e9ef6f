"""Kernels kept by content: found again when nothing that matters has changed, and never otherwise."""

import functools
import os

import pytest
import torch
from torch import Tensor, nn

from ridgescope.models import CNN, MLP, KernelStore, empirical_ntk
from ridgescope.models.kernels.checks import checked_parameters
from ridgescope.models.kernels.identity import kernel_identity


def identity(model: nn.Module, x: Tensor, **options: object) -> str:
    return kernel_identity(model, checked_parameters(model, None, x), (x, None), options)


class Scaled(nn.Module):
    def __init__(self, function: object, setting: object = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.fill_(1.0)
            self.linear.bias.fill_(1.0)
        self.function, self.setting = function, setting

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))  # type: ignore[operator]


class Setting:
    def __init__(self, power: int) -> None:
        self.power = power


def power(x: Tensor, exponent: int) -> Tensor:
    return x**exponent


def times(factor: float) -> object:
    return lambda x: factor * x


def test_equal_kernels_have_equal_names_and_different_ones_different_names():
    x = torch.ones(3, 4, dtype=torch.float64)
    alike = [
        lambda: Scaled(torch.tanh),
        lambda: Scaled(torch.sin),
        lambda: Scaled(lambda x: 2 * x),
        lambda: Scaled(lambda x: 3 * x),
        lambda: Scaled(times(2.0)),
        lambda: Scaled(times(3.0)),
        lambda: Scaled(functools.partial(power, exponent=2)),
        lambda: Scaled(functools.partial(power, exponent=3)),
        lambda: Scaled(torch.tanh, Setting(2)),
        lambda: Scaled(torch.tanh, {"a": [Setting(3)]}),
        lambda: MLP((4,), 2, width=3, depth=1, activation="erf", generator=torch.Generator().manual_seed(0)),
        lambda: MLP((4,), 2, width=3, depth=1, activation="tanh", generator=torch.Generator().manual_seed(0)),
        lambda: MLP((4,), 2, width=3, depth=1, activation="erf", generator=torch.Generator().manual_seed(1)),
    ]
    names = [identity(make(), x) for make in alike]
    assert names == [identity(make(), x) for make in alike]
    model = alike[0]()
    names += [
        identity(model, x, form="trace"),
        identity(model, x + 1e-15),
        identity(model, x[:2]),
        identity(model.float(), x.float()),
        kernel_identity(model, dict(model.named_parameters()), (x.float(), x.float()), {}),
    ]
    assert len(set(names)) == len(names)


def test_the_mode_of_a_network_without_random_layers_does_not_matter():
    x = torch.ones(3, 4, dtype=torch.float64)
    model = Scaled(torch.tanh)
    assert identity(model.train(), x) == identity(model.eval(), x)


@pytest.fixture
def net(generator):
    return MLP((8,), 2, width=16, depth=2, activation="erf", generator=generator)


def test_a_kernel_is_computed_once_and_a_damaged_one_again_without_touching_others(monkeypatch, net, inputs, tmp_path):
    from ridgescope.models.kernels import stored

    computed = []
    compute = stored.compute_tiles
    monkeypatch.setattr(stored, "compute_tiles", lambda *args: computed.append(1) or compute(*args))
    store, x, y = KernelStore(tmp_path), inputs(9, 8), inputs(4, 8)
    first, cross = empirical_ntk(net, None, x, path=store), empirical_ntk(net, None, y, x, path=store)
    torch.testing.assert_close(first, empirical_ntk(net, None, x))
    assert len(store.entries()) == len(computed) == 2
    assert torch.equal(empirical_ntk(net, None, x, path=store), first)
    assert len(computed) == 2
    damaged = next(entry for entry in store.entries() if entry.head.shape == (18, 18))
    whole = damaged.folder / "kernel.safetensors"
    content = bytearray(whole.read_bytes())
    content[-1] ^= 1
    whole.write_bytes(content)
    assert [entry.damaged() for entry in store.entries()] == [entry == damaged for entry in store.entries()]
    assert torch.equal(empirical_ntk(net, None, y, x, path=store), cross)
    assert len(computed) == 2
    assert torch.equal(empirical_ntk(net, None, x, path=store), first)
    assert len(computed) == 3
    assert not any(entry.damaged() for entry in store.entries())


def test_beyond_its_limit_a_store_forgets_what_was_not_used_for_longest(net, inputs, tmp_path):
    parts = [inputs(20, 8) for _ in range(3)]
    store = KernelStore(tmp_path, "40KB")  # two kernels of 40 x 40 numbers, 13 KB each, and their descriptions
    mapped = []
    for seconds, x in enumerate([parts[0], parts[1], parts[0], parts[2]]):
        mapped.append(empirical_ntk(net, None, x, path=store))
        for entry in store.entries():  # file systems keep coarse times
            if entry.used > 1000:
                os.utime(entry.folder, (seconds, seconds))
    left = {entry.name for entry in store.entries()}
    assert len(left) == 2
    fresh = [empirical_ntk(net, None, x) for x in parts]
    torch.testing.assert_close(mapped[1], fresh[1])  # removed, and still readable where it is in use
    empirical_ntk(net, None, parts[0], path=store)
    assert {entry.name for entry in store.entries()} == left


def test_convolutions_and_buffers_are_part_of_the_name(generator):
    x = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    model = CNN((1, 6, 6), 2, width=3, depth=1, generator=generator)
    other = CNN((1, 6, 6), 2, width=3, depth=1, strides=2, readout="pool", generator=generator)
    assert identity(model, x) != identity(other, x)
    normed = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 2)).double().eval()
    before = identity(normed, x)
    normed[0].running_mean += 1e-12
    assert identity(normed, x) != before
