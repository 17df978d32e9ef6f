"""What happens along the way: risks and kernels at log-spaced steps, for every member.

    trajectory.parquet    one row per member and measured step
        seed, draw, ridge     the member
        step, time            steps done; the time of gradient flow that they make (SGD only)
        train_risk, test_risk
        ntk_movement          |K_t - K_0| / |K_0|, K the tangent kernel of the training set (mean over outputs)
        ntk_alignment         <K_t, Y Y^T> / (|K_t| |Y Y^T|)
        ck_movement, ck_alignment       the same of the conjugate kernel; missing where a network has none

Gradient flow is df/dt = -(1/P) (K/s) (f - y), as in :mod:`ridgescope.theory`: one step of SGD of rate r makes the time
2 r alpha^2 s (the loss has no factor 1/2), and 1/(1 - m) of that with momentum m. Kernels are those of
:mod:`ridgescope.models`.

Letters: E members, P points, T measured steps, s kernel scale.
"""

import bisect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ridgescope.models import conjugate_kernel, empirical_ntk
from ridgescope.train.ensemble import Member
from ridgescope.train.errors import UserError
from ridgescope.train.training import EnsembleTraining

QUANTITIES = (
    "step", "time", "train_risk", "test_risk", "ntk_movement", "ntk_alignment", "ck_movement", "ck_alignment",
)  # fmt: skip


def log_spaced_steps(max_steps: int, per_decade: int) -> list[int]:
    """0, then about ``per_decade`` whole numbers in each factor of ten, and ``max_steps``."""
    if per_decade < 0:
        raise UserError(f"measure_per_decade={per_decade} must be at least 0")
    if per_decade == 0:
        return []
    exponents = np.arange(int(np.ceil(np.log10(max_steps) * per_decade)) + 1) / per_decade
    steps = np.minimum(np.rint(10**exponents), max_steps).astype(int)
    return sorted({0, *steps.tolist(), max_steps})


class Trajectory(L.Callback):
    """Measures at ``steps``, into ``training.trajectory`` (T, E, quantities), which checkpoints keep.

    A member that has finished stays where it is. Cost per measurement: a forward pass over test and training points,
    and with ``kernels`` the kernels of the training set in trace form, P^2 numbers each.
    """

    def __init__(self, steps: Sequence[int], test: tuple[Tensor, Tensor], *, kernels: bool) -> None:
        self.steps, self.test, self.kernels = list(steps), test, kernels

    def on_fit_start(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        assert isinstance(training, EnsembleTraining)
        shape = (len(self.steps), len(training.members), len(QUANTITIES))
        training.trajectory = training.initial.new_full(shape, float("nan"))
        self.test = tuple(x.to(training.device) for x in self.test)  # type: ignore[assignment]
        self.start: list[list[Tensor]] | None = None

    def on_train_start(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        assert isinstance(training, EnsembleTraining)
        if training.step == 0:
            self._record(training)

    def on_train_batch_end(self, trainer: L.Trainer, training: L.LightningModule, *_: Any) -> None:
        assert isinstance(training, EnsembleTraining)
        if training.step in self.steps or training.finished:
            self._record(training)

    @torch.no_grad()
    def _record(self, training: EnsembleTraining) -> None:
        columns = {
            "step": torch.full_like(training.losses, training.step),
            "time": torch.full_like(training.losses, training.flow_time()),
            "train_risk": training.training_risks(),
            "test_risk": training.risks(*self.test),
        }
        if self.kernels:
            columns |= self._kernels(training)
        row = torch.full_like(training.trajectory[0], float("nan"))
        for name, value in columns.items():
            row[:, QUANTITIES.index(name)] = value
        training.trajectory[bisect.bisect_left(self.steps, training.step)] = row

    def _kernels(self, training: EnsembleTraining) -> dict[str, Tensor]:
        if self.start is None:
            self.start = [_grams(training, training.initial[e], e) for e in range(len(training.members))]
        theta = training.initial if training.linearised else training.standing()
        values = torch.full((4, len(training.members)), float("nan"), dtype=theta.dtype)
        for e, before in enumerate(self.start):
            targets = training.targets[training.draw_index[e]]
            ideal = targets @ targets.T
            for k, (now, then) in enumerate(zip(_grams(training, theta[e], e), before, strict=True)):
                values[2 * k, e] = (now - then).norm() / then.norm()
                values[2 * k + 1, e] = (now * ideal).sum() / (now.norm() * ideal.norm())
        return dict(zip(QUANTITIES[-4:], values, strict=True))


def _grams(training: EnsembleTraining, theta: Tensor, member: int) -> list[Tensor]:
    """Tangent and, where there is one, conjugate kernel (P, P) of a member at theta (p,) on its training set."""
    if not bool(theta.isfinite().all()):
        return [training.initial.new_full((1, 1), float("nan"))] * 2
    parameters = {name: value[0] for name, value in training.network.unflatten(theta[None]).items()}
    inputs, skeleton = training.inputs[training.draw_index[member]], training.network.skeleton
    with torch.enable_grad():  # it is made of backward passes
        grams = [empirical_ntk(skeleton, parameters, inputs, form="trace")]
    with suppress(ValueError):  # no linear readout
        grams.append(conjugate_kernel(skeleton, parameters, inputs))
    return grams


def program_table(members: Sequence[Member], trajectory: Tensor) -> pd.DataFrame:
    """``trajectory`` (T, E, quantities) as rows; steps that training did not reach are left out."""
    identity = pd.DataFrame([asdict(member) for member in members])
    parts = [
        pd.concat([identity, pd.DataFrame(values, columns=list(QUANTITIES))], axis=1)
        for values in trajectory.double().cpu().numpy()
    ]
    table = pd.concat(parts, ignore_index=True).dropna(subset="step")
    return table.astype({"step": int})
