"""Kernels inside a memory budget, on disk, among processes: the same numbers, whatever stops them on the way."""

import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from ridgescope.models import CNN, MLP, empirical_ntk, module_ntks, ntk_diagonal
from ridgescope.models.kernels import memory
from ridgescope.models.kernels.disk import DiskKernel
from ridgescope.models.kernels.precision import full_precision
from ridgescope.models.kernels.structured import layout


class Residual(nn.Module):
    """Layers of every form: structured, positions, the exact Jacobian of BatchNorm, and a block twice as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.readout = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        return self.readout((h + self.second(h)).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual().double().eval()


@pytest.fixture
def x(inputs: Callable[..., Tensor]) -> Tensor:
    return inputs(23, 1, 6, 6)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SMALL", 4)


SMALL = 4e5  # bytes: a few inputs at a time


def stop_after(monkeypatch: pytest.MonkeyPatch, tiles: int) -> None:
    """The machine stops when this many tiles are written: nothing after it is run."""
    write, done = DiskKernel.write, []

    def stopping(*arguments: object) -> None:
        if len(done) == tiles:
            raise KeyboardInterrupt
        done.append(1)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DiskKernel, "write", stopping)


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    write, tiles = DiskKernel.write, []

    def counting(disk, head, tile, *rest):  # type: ignore[no-untyped-def]
        tiles.append(tile.index)
        write(disk, head, tile, *rest)

    monkeypatch.setattr(DiskKernel, "write", counting)
    return tiles


@pytest.mark.parametrize("form", ["full", "trace"])
@pytest.mark.parametrize("crossed", [False, True])
def test_a_kernel_on_disk_is_the_kernel_in_memory(small_tiles, net, x, inputs, tmp_path, form, crossed):
    other = inputs(9, 1, 6, 6) if crossed else None
    expected = empirical_ntk(net, None, x, other, form=form)
    stored = empirical_ntk(net, None, x, other, form=form, memory=SMALL, path=tmp_path)
    torch.testing.assert_close(stored, expected, rtol=1e-12, atol=1e-12)
    assert crossed or torch.equal(stored, stored.T)
    assert torch.equal(load_file(tmp_path / "kernel.safetensors")["kernel"], stored)  # anybody can read it
    head = json.loads((tmp_path / "kernel.json").read_text())
    assert len(head["sha256"]) > 4
    assert head["layout"]["strip"] < len(x)


def test_the_second_call_reads_what_the_first_one_wrote(monkeypatch, net, x, tmp_path):
    first = empirical_ntk(net, None, x, path=tmp_path)
    tiles = count_writes(monkeypatch)
    assert torch.equal(empirical_ntk(net, None, x, path=tmp_path), first)
    assert tiles == []


@pytest.mark.parametrize("finished", [0, 1, 5])
def test_a_kernel_that_was_stopped_goes_on_to_the_same_bits(small_tiles, monkeypatch, net, x, tmp_path, finished):
    whole = empirical_ntk(net, None, x, memory=SMALL, path=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, finished)
        with pytest.raises(KeyboardInterrupt):
            empirical_ntk(net, None, x, memory=SMALL, path=tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "kernel.safetensors").exists()
    with (tmp_path / "stopped" / "tiles-0.jsonl").open("a") as record:
        record.write('{"tile": 7, "sha')  # a kill in the middle of a line
    tiles = count_writes(monkeypatch)
    # other memory may be free by now: the tiles stay those that were begun
    resumed = empirical_ntk(net, None, x, memory=10 * SMALL, path=tmp_path / "stopped")
    assert torch.equal(resumed, whole)
    assert set(range(finished)).isdisjoint(tiles)
    assert (tmp_path / "stopped" / "kernel.safetensors").read_bytes() == (
        tmp_path / "whole" / "kernel.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("place", ["finished", "unfinished"])
def test_a_damaged_tile_is_computed_again_and_no_other(small_tiles, monkeypatch, net, x, tmp_path, place):
    if place == "unfinished":
        with monkeypatch.context() as patch:
            stop_after(patch, 6)
            with pytest.raises(KeyboardInterrupt):
                empirical_ntk(net, None, x, form="trace", memory=SMALL, path=tmp_path)
    else:
        empirical_ntk(net, None, x, form="trace", memory=SMALL, path=tmp_path)
    file = tmp_path / ("kernel.part" if place == "unfinished" else "kernel.safetensors")
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + 3] ^= 1  # entry (0, 0), of tile 0
    file.write_bytes(content)
    tiles = count_writes(monkeypatch)
    repaired = empirical_ntk(net, None, x, form="trace", memory=SMALL, path=tmp_path)
    assert tiles[0] == 0
    assert set(tiles) & set(range(1, 6)) == set()
    assert torch.equal(repaired, empirical_ntk(net, None, x, form="trace", memory=SMALL, path=tmp_path / "fresh"))


@pytest.mark.parametrize("damage", ["cut", "no description", "empty description", "header"])
def test_files_that_are_damaged_are_computed_again(net, x, tmp_path, damage):
    expected = empirical_ntk(net, None, x, path=tmp_path)
    whole, description = tmp_path / "kernel.safetensors", tmp_path / "kernel.json"
    if damage == "cut":
        os.truncate(whole, 1000)
    elif damage == "header":
        whole.write_bytes(b"\0" * 64 + whole.read_bytes()[64:])
    else:
        description.write_text("" if damage == "empty description" else '{"format": 1}')
    assert torch.equal(empirical_ntk(net, None, x, path=tmp_path), expected)


def test_another_kernel_is_never_overwritten(net, x, tmp_path):
    empirical_ntk(net, None, x, path=tmp_path)
    before = (tmp_path / "kernel.safetensors").read_bytes()
    for change in ({"form": "trace"}, {"outputs": [0]}, {"parameters": ["first"]}, {"dtype": torch.float32}):
        with pytest.raises(ValueError, match=r"holds another kernel \(Residual, 69 x 69\).*choose another path"):
            empirical_ntk(net, None, x, path=tmp_path, **change)
    with torch.no_grad():
        net.readout.weight[0, 0] += 1e-9
    with pytest.raises(ValueError, match="holds another kernel"):
        empirical_ntk(net, None, x, path=tmp_path)
    assert (tmp_path / "kernel.safetensors").read_bytes() == before
    (tmp_path / "kernel.json").unlink()
    with pytest.raises(ValueError, match=r"kernel.safetensors is not a kernel of ours"):
        empirical_ntk(net, None, x, path=tmp_path)


def test_the_budget_that_a_refusal_names_is_enough(net, x, tmp_path):
    for path in (None, tmp_path):
        with pytest.raises(ValueError, match=r"memory=10KB cannot hold one input") as refusal:
            empirical_ntk(net, None, x[:6], memory="10KB", path=path)
        named = re.search(r"pass memory='(\S+)' or more", str(refusal.value))
        assert named is not None
        empirical_ntk(net, None, x[:6], memory=named[1], path=path)


def test_a_kernel_that_fits_no_memory_is_sent_to_disk_and_one_that_fits_no_disk_is_refused(
    monkeypatch, net, x, tmp_path
):
    with pytest.raises(ValueError, match=r"beside the 38.1KB of its 23 x 23 kernel; .*path=FOLDER"):
        empirical_ntk(net, None, x, memory="38KB")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 9000, 9000))
    with pytest.raises(ValueError, match=r"has 9KB free and the 69 x 69 kernel takes 38.1KB; choose another disk"):
        empirical_ntk(net, None, x, path=tmp_path)
    assert empirical_ntk(net, None, x, path=tmp_path, form="trace").shape == (23, 23)


@pytest.mark.parametrize("size", ["4 GB", "0GB", "many", -1.0, float("nan")])
def test_sizes_are_checked(net, x, size):
    if size == "4 GB":
        assert empirical_ntk(net, None, x, memory=size).shape == (69, 69)
    else:
        with pytest.raises(ValueError, match="memory="):
            empirical_ntk(net, None, x, memory=size)


def test_unasked_a_share_of_what_is_free_is_used(monkeypatch):
    cpu = torch.device("cpu")
    assert 0 < memory.free_memory(cpu) < 1e15
    monkeypatch.setattr(memory, "free_memory", lambda _: 1e9)
    assert memory.budget(None, 10**6, cpu) == 5e8
    monkeypatch.setattr(memory, "free_memory", lambda _: 1e12)
    assert memory.budget(None, 10**6, cpu) == 10**6 + memory.WORKING


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_measured_peak_is_within_the_budget(tmp_path, kind, stored):
    # a process of its own: small arrays wander through the holes of a heap that other tests have used
    budget = 60e6
    script = [sys.executable, str(Path(__file__).with_name("peak_process.py"))]
    command = [*script, kind, str(budget), str(tmp_path) if stored else ""]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (budget / 10 if stored else found["kernel"]) < found["peak"] < budget


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_a_kernel_is_computed_in_memory_that_was_freed_before():
    command = [sys.executable, str(Path(__file__).with_name("pages_process.py"))]
    pages = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert pages < 512  # one array's; thousands where every array is mapped afresh


def test_modules_add_up_to_the_kernel(net, x, ntk_oracle):
    whole = empirical_ntk(net, None, x)
    parts = module_ntks(net, None, x)
    assert set(parts) == {"first", "norm", "second", "readout"}
    torch.testing.assert_close(sum(parts.values()), whole)
    for name, part in parts.items():
        others = nn.ModuleDict({k: m for k, m in net.named_children() if k != name})
        others.requires_grad_(False)
        torch.testing.assert_close(empirical_ntk(net, None, x, parameters=[name]), part)


def test_chosen_parameters_and_outputs_are_the_gradients_of_those_alone(net, x, inputs):
    params = {name: value.detach() for name, value in net.named_parameters()}

    def jacobian(points: Tensor, names: list[str], outputs: list[int]) -> Tensor:
        parts = jacrev(lambda some: functional_call(net, {**params, **some}, (points,))[:, outputs])(
            {name: params[name] for name in names}
        )
        return torch.cat([part.flatten(2) for part in parts.values()], dim=2).transpose(0, 1).flatten(0, 1)

    y = inputs(5, 1, 6, 6)
    for chosen, names, outputs in (
        (["first", "readout"], ["first.weight", "first.bias", "readout.weight", "readout.bias"], [2, 0]),
        (["second.weight", "norm"], ["second.weight", "norm.weight", "norm.bias"], [1]),
    ):
        expected = jacobian(x, names, outputs) @ jacobian(y, names, outputs).T
        found = empirical_ntk(net, None, x, y, parameters=chosen, outputs=outputs)
        assert float((found - expected).norm() / expected.norm()) < 1e-10
        trace = empirical_ntk(net, None, x, y, parameters=chosen, outputs=outputs, form="trace")
        blocks = found.view(len(outputs), len(x), len(outputs), len(y)).diagonal(dim1=0, dim2=2)
        torch.testing.assert_close(trace, blocks.mean(-1))


def test_a_network_without_a_structured_layer_has_its_exact_jacobian(generator, inputs, ntk_oracle):
    bilinear = nn.Sequential(nn.Conv1d(1, 3, 4), nn.Tanh(), nn.Flatten()).double()
    points = inputs(6, 1, 5)
    torch.testing.assert_close(empirical_ntk(bilinear, None, points), ntk_oracle(bilinear, points))


def test_the_diagonal_alone_is_that_of_the_kernel(net, x, generator, inputs):
    torch.testing.assert_close(ntk_diagonal(net, None, x), empirical_ntk(net, None, x).diagonal())
    pooled = CNN((1, 6, 6), 3, width=5, depth=2, readout="pool", generator=generator)
    for chosen in ({}, {"outputs": [2], "parameters": ["hidden"]}, {"memory": SMALL}):
        expected = empirical_ntk(pooled, None, x, **chosen).diagonal()
        torch.testing.assert_close(ntk_diagonal(pooled, None, x, **chosen), expected)


def test_choices_that_do_not_exist_are_named(net, x):
    for wrong, message in (
        ({"parameters": ["third"]}, r"no parameter or module is called 'third'; there are first.weight"),
        ({"parameters": []}, r"parameters=\[\] chooses nothing"),
        ({"outputs": [3]}, r"outputs=\[3\] must be different numbers from 0 to 2"),
        ({"outputs": [0, 0]}, r"outputs=\[0, 0\] must be different"),
        ({"dtype": torch.float16}, r"dtype='torch.float16'"),
    ):
        with pytest.raises(ValueError, match=message):
            empirical_ntk(net, None, x, **wrong)


def test_double_sums_of_single_gradients_have_no_negative_eigenvalue_above_double_rounding(generator, inputs):
    # 36 parameters and 200 points: most eigenvalues are zero, and rounding makes some of them negative
    model = MLP((8,), 1, width=4, depth=1, generator=generator, dtype=torch.float32)
    points = inputs(200, 8).float()
    single = empirical_ntk(model, None, points)
    double = empirical_ntk(model, None, points, dtype=torch.float64)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(double.float(), single)
    top = float(double.diagonal().sum())
    assert torch.linalg.eigvalsh(double)[0] > -1e-14 * top
    assert torch.linalg.eigvalsh(single.double())[0] < -1e-9 * top


def test_reduced_precision_is_off_inside_and_as_before_outside(net, x):
    before = torch.get_float32_matmul_precision()
    single = Residual().eval()
    points = x.float()
    expected = empirical_ntk(single, None, points)
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16 products on some CPUs, TF32 on a GPU
        with full_precision(points.device):
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "medium"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(empirical_ntk(single, None, points), expected)
    finally:
        torch.set_float32_matmul_precision(before)


SCRIPT = Path(__file__).with_name("kernel_process.py")


@pytest.fixture
def kernel_process() -> Iterator[ModuleType]:
    """What those processes run, for this one; sums in the last bit may depend on the number of threads."""
    threads = torch.get_num_threads()
    spec = importlib.util.spec_from_file_location("kernel_process", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts one process of a group; those still running at the end are stopped."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), *map(str, words)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_processes_share_a_kernel_are_killed_and_one_ends_it_with_the_same_bits(
    monkeypatch, launch, tmp_path, kernel_process
):
    meeting, folder = tmp_path / "meeting", tmp_path / "kernel"
    killed = [launch(rank, 2, meeting, folder, 3) for rank in (0, 1)]
    for process in killed:
        process.communicate(timeout=300)
    assert {process.returncode for process in killed} == {-signal.SIGKILL}
    records = sorted(folder.glob("tiles-*.jsonl"))
    assert [len(path.read_text().split("\n\n")) for path in records] == [3, 3]
    together = [launch(rank, 2, tmp_path / "again", tmp_path / "second", -1) for rank in (0, 1)]
    tiles = count_writes(monkeypatch)
    resumed = kernel_process.compute(folder, None)
    answers = []
    for process in together:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    # tiles of a triangle grow towards its base: equal work is 11 of the first against 5 of the last
    assert [answer["written"] for answer in answers] == [11, 5]
    assert len(tiles) == 16 - 6
    assert {answer["sum"] for answer in answers} == {kernel_process.checksum(resumed)}
    assert answers[0]["gathered"] == answers[1]["gathered"] < 1e-6
    assert "rank 1 of 2 failed" in answers[0]["refusal"]
    assert "inputs hold NaN or infinity" in answers[1]["refusal"]


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y


def test_mixed_parameters_other_devices_and_outputs_that_are_no_tensor_are_named(inputs):
    x = inputs(4, 8)
    mixed = nn.Sequential(nn.Linear(8, 3).double(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"parameter 1.weight is torch.float32 on cpu but 0.weight is torch.float64"):
        empirical_ntk(mixed, None, x)
    with pytest.raises(ValueError, match=r"inputs are torch.float64 on meta but parameter 0.weight is .* on cpu"):
        empirical_ntk(mixed.double(), None, x.to("meta"))
    with pytest.raises(ValueError, match=r"the model returns tuple, kernels need a tensor \(n, num_outputs\)"):
        empirical_ntk(Pair(8, 2).double(), None, x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_kernel_of_the_cpu(net, x, tmp_path):
    single, points = net.float(), x.float()
    expected = empirical_ntk(single, None, points, dtype=torch.float64)
    on_gpu = single.cuda(), None, points.cuda()
    for kernel in (empirical_ntk(*on_gpu), empirical_ntk(*on_gpu, memory="100MB", path=tmp_path)):
        # TF32 would be wrong in the third digit
        assert float((kernel.cpu().double() - expected).norm() / expected.norm()) < 1e-5
