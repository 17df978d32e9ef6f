"""Ensembles reach the optimum of the theory's loss, each member as if it were alone."""

import contextlib
import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ridgescope.models import CNN, MLP, empirical_ntk, linearised_predict
from ridgescope.train.callbacks import MetricsFile, PlainProgress
from ridgescope.train.data import PreparedData, RidgeData, prepare_data
from ridgescope.train.ensemble import (
    Member,
    design_members,
    initialise,
    members_per_program,
    split_programs,
)
from ridgescope.train.errors import UserError
from ridgescope.train.optimisers import SGD, Adam, KernelLBFGS, OptimiserFactory
from ridgescope.train.programs import collected, fit
from ridgescope.train.training import EnsembleTraining

SEEDS = [0, 1]


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return prepare_data("digits", train_size=30, pool_size=300, test_size=100, num_draws=2)


def prepare(
    data: PreparedData,
    members: list[Member],
    optimiser: OptimiserFactory,
    *,
    alpha: float = 10.0,
    width: int = 32,
    kind: type = MLP,
    batch_size: int | None = None,
    max_steps: int = 200,
    **network: Any,
) -> tuple[EnsembleTraining, RidgeData]:
    factory = partial(kind, width=width, depth=2, activation="gelu", **network)
    flat, initial = initialise(
        factory, in_shape=data.in_shape, num_outputs=data.num_outputs, seeds=SEEDS, dtype=torch.float64
    )
    module = RidgeData(data, batch_size=batch_size)
    rows = initial[[SEEDS.index(m.seed) for m in members]]
    training = EnsembleTraining(
        flat,
        rows,
        members,
        inputs=module.inputs,
        targets=module.targets,
        alpha=alpha,
        optimiser=optimiser,
        batch_size=batch_size,
        max_steps=max_steps,
    )
    return training, module


def trained(data: PreparedData, members: list[Member], optimiser: OptimiserFactory, tmp_path: Path, **settings: Any):  # type: ignore[no-untyped-def]
    training, module = prepare(data, members, optimiser, **settings)
    fit(training, module, callbacks=[MetricsFile(tmp_path / "metrics.csv", 0), PlainProgress()])
    return training


def closed_form(training: EnsembleTraining, member: int) -> tuple[Tensor, Tensor]:
    """Training-set predictions and loss of kernel ridge regression with the kernel at initialisation."""
    network = training.network
    parameters = {name: value[0] for name, value in network.unflatten(training.initial[member : member + 1]).items()}
    draw, ridge = training.members[member].draw, training.members[member].ridge
    x, y = training.inputs[draw], training.targets[draw]
    gram = empirical_ntk(network.skeleton, parameters, x) / network.kernel_scale
    system = gram + len(x) * ridge * torch.eye(len(gram), dtype=gram.dtype)
    dual = torch.linalg.solve(system, y.T.flatten())
    fitted = linearised_predict(network.skeleton, parameters, x, dual / network.kernel_scale, x)
    loss = (fitted - y).square().sum() / len(x) + ridge * dual @ gram @ dual
    return fitted, loss


def predictions(training: EnsembleTraining) -> Tensor:
    with torch.no_grad():
        x = training.inputs[training.draw_index]
        now = training.network.outputs(training.theta, x)
        return training.alpha * (now - training.network.outputs(training.initial, x))


@pytest.mark.parametrize("parameterisation", ["ntk", "mup", "standard"])
def test_very_lazy_networks_are_kernel_ridge_regression(
    data: PreparedData, tmp_path: Path, parameterisation: str
) -> None:
    # deviation of order 1/alpha; also the ridge's unit in each parameterisation
    members = [Member(0, 0, 1e-2), Member(1, 1, 1e-3)]
    alpha = 1e4 * (32**0.5 if parameterisation == "mup" else 1)
    training = trained(data, members, KernelLBFGS(), tmp_path, alpha=alpha, parameterisation=parameterisation)
    assert training.statuses() == ["converged", "converged"]
    for e in range(2):
        expected, loss = closed_form(training, e)
        torch.testing.assert_close(predictions(training)[e], expected, rtol=0, atol=2e-3)
        assert float(training.losses[e] / loss - 1) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("optimiser", [SGD(), Adam(learning_rate=1.0)])
def test_gradient_descent_reaches_the_optimum_of_the_second_order_method(
    data: PreparedData, tmp_path: Path, optimiser: OptimiserFactory
) -> None:
    members = [Member(0, 0, 1e-1), Member(1, 1, 1e-1)]
    reference = trained(data, members, KernelLBFGS(), tmp_path)
    descended = trained(data, members, optimiser, tmp_path, max_steps=3000)
    assert descended.statuses() == ["converged", "converged"]
    # a gap of 1e-6 of the loss is a distance of about 1e-3 in the predictions
    torch.testing.assert_close(predictions(descended), predictions(reference), rtol=0, atol=3e-3)
    torch.testing.assert_close(descended.losses, reference.losses, rtol=2e-6, atol=0)


def test_members_of_an_ensemble_train_as_if_alone(data: PreparedData, tmp_path: Path) -> None:
    members = design_members("crossed", SEEDS, 2, [1e-2, 1e-3])
    together = trained(data, members, KernelLBFGS(), tmp_path)
    for e in (0, 3, 6):
        alone = trained(data, [members[e]], KernelLBFGS(), tmp_path)
        torch.testing.assert_close(together.theta[e], alone.theta[0], rtol=1e-9, atol=1e-11)
        assert int(together.steps[e]) == int(alone.steps[0])


def test_training_is_bit_reproducible(data: PreparedData, tmp_path: Path) -> None:
    runs = [trained(data, [Member(0, 0, 1e-3)], KernelLBFGS(), tmp_path) for _ in range(2)]
    assert torch.equal(runs[0].theta, runs[1].theta)


def test_a_rich_narrow_network_converges_too(data: PreparedData, tmp_path: Path) -> None:
    training = trained(data, [Member(0, 0, 1e-3)], KernelLBFGS(), tmp_path, alpha=0.5, width=16, max_steps=600)
    assert training.statuses() == ["converged"]
    assert float(training.gaps[0]) <= training.tolerance


def test_a_relu_network_stops_where_its_loss_no_longer_falls(data: PreparedData, tmp_path: Path) -> None:
    factory = partial(MLP, width=16, depth=2, activation="relu")
    flat, initial = initialise(factory, in_shape=data.in_shape, num_outputs=10, seeds=[0], dtype=torch.float64)
    module = RidgeData(data)
    training = EnsembleTraining(
        flat,
        initial,
        [Member(0, 0, 1e-2)],
        inputs=module.inputs,
        targets=module.targets,
        alpha=10.0,
        optimiser=KernelLBFGS(),
        max_steps=1000,
    )
    fit(training, module)
    assert training.statuses()[0] in ("converged", "stagnated")
    assert int(training.steps[0]) < 1000


def test_convolutional_ensembles_converge(data: PreparedData, tmp_path: Path) -> None:
    members = [Member(0, 0, 1e-2), Member(1, 1, 1e-4)]
    training = trained(data, members, KernelLBFGS(), tmp_path, kind=CNN, width=8, strides=[1, 2])
    assert training.statuses() == ["converged", "converged"]


def test_minibatches_are_judged_by_the_full_gradient(data: PreparedData, tmp_path: Path) -> None:
    training = trained(data, [Member(0, 0, 1e-1)], SGD(momentum=0.0), tmp_path, batch_size=10, max_steps=60)
    assert training.statuses() == ["not converged"]
    assert float(training.losses[0]) < 0.85  # it did learn: zero predicts 0.9
    assert float(training.gaps[0]) > training.tolerance


def test_a_member_that_diverges_stops_alone(
    data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the step is stable for the small penalty only: 2/L with L about 2 (s_max^2/P + c)
    members = [Member(0, 0, 1e-2), Member(1, 1, 1e3)]
    calm, _ = prepare(data, members[:1], SGD())
    rate = calm.alpha**2 / float(calm.top_curvature().max())
    training = trained(data, members, SGD(learning_rate=rate, momentum=0.5), tmp_path, max_steps=4000)
    assert training.statuses()[1] == "diverged"
    said = capsys.readouterr().err
    assert "is above the stability edge" in said
    assert "for 1 of 2 networks" in said
    assert f"diverged at step {int(training.steps[1])}, the others go on: Member(seed=1, draw=1, ridge=1000.0)" in said
    assert bool(training.theta[0].isfinite().all())
    assert training.statuses()[0] != "diverged"


def test_metrics_are_never_truncated_by_a_restart(data: PreparedData, tmp_path: Path) -> None:
    for _ in range(2):
        trained(data, [Member(0, 0, 1e-2)], KernelLBFGS(), tmp_path)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("restart,program,step,member,loss")
    restarts = [int(line.split(",")[0]) for line in lines[1:]]
    assert restarts == sorted(restarts)
    assert set(restarts) == {0, 1}


def test_kernel_lbfgs_refuses_minibatches(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="optimiser=kernel_lbfgs is full batch but batch_size=10"):
        trained(data, [Member(0, 0, 1e-2)], KernelLBFGS(), tmp_path, batch_size=10)


def test_designs() -> None:
    paired = design_members("paired", [5, 6, 7], 2, [1e-2])
    assert [(m.seed, m.draw) for m in paired] == [(5, 0), (6, 1), (7, 0)]
    assert len(design_members("crossed", [5, 6, 7], 2, [1e-2, 1e-4])) == 12
    with pytest.raises(UserError, match="design='latin' is unknown"):
        design_members("latin", [0], 1, [1e-2])


def test_programs_follow_the_memory_budget() -> None:
    members = design_members("crossed", [0, 1], 2, [1e-2, 1e-4])
    assert members_per_program(100, 350) == 3
    assert members_per_program(100, 10) == 1
    programs = split_programs(members, 3)
    assert [len(program) for program in programs] == [3, 3, 2]
    assert sorted(str(m) for program in programs for m in program) == sorted(map(str, members))


def test_the_stability_edge_is_where_gradient_descent_turns(data: PreparedData, tmp_path: Path) -> None:
    members, lazy = [Member(0, 0, 1e-2)], {"alpha": 1e4}
    calm, _ = prepare(data, members, SGD(), **lazy)
    edge = lazy["alpha"] ** 2 * 2 * 1.5 / float(calm.top_curvature().max())
    below = trained(data, members, SGD(learning_rate=0.95 * edge, momentum=0.5), tmp_path, max_steps=600, **lazy)
    above = trained(data, members, SGD(learning_rate=1.05 * edge, momentum=0.5), tmp_path, max_steps=600, **lazy)
    assert float(below.losses[0]) < 0.9
    assert float(above.losses[0]) > 1e3 or above.statuses() == ["diverged"]


def test_a_falling_rate_ends_closer_to_the_optimum_than_a_constant_one(data: PreparedData, tmp_path: Path) -> None:
    members = [Member(0, 0, 1e-1)]
    best = trained(data, members, KernelLBFGS(), tmp_path)
    excess = []
    for schedule in ("constant", "linear", "cosine"):
        method = SGD(momentum=0.0, learning_rate=0.5, schedule=schedule)
        training = trained(data, members, method, tmp_path, batch_size=5, max_steps=600)
        excess.append(float(training.losses[0] / best.losses[0] - 1))
    assert excess[1] < excess[0] / 3
    assert excess[2] < excess[0] / 3
    with pytest.raises(UserError, match=r"optimiser\.schedule='step' is unknown"):
        trained(data, members, SGD(schedule="step"), tmp_path)


def test_reference_cycles_of_a_program_are_freed_at_its_end_even_after_an_error() -> None:
    def leave_a_cycle() -> weakref.ref[nn.Module]:
        one = nn.Linear(1, 1)
        one.itself = [one]  # type: ignore[assignment]
        return weakref.ref(one)

    with collected():
        left = leave_a_cycle()
        assert left() is not None
    assert left() is None
    with contextlib.suppress(ZeroDivisionError), collected():
        left = leave_a_cycle()
        _ = 1 / 0
    assert left() is None
    assert gc.get_freeze_count() == 0
