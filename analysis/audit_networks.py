"""Trained networks against regression with their own kernel, and what they act like where the two differ.

Letters: P training points, T test points, C outputs, lam ridge, s kernel scale, f = alpha (h(theta) - h(theta_0)), or
h(theta) itself where the initial weights are not known.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ridgescope.analysis.regression import full_kernel_ridge, squared_error
from ridgescope.models import empirical_ntk, linearised_predict
from ridgescope.theory import Acting, acting_ridge

Row = dict[str, Any]
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Points:
    """Training and test points as the network was given them: inputs (n, ...), targets (n, C)."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def audit_network(
    network: nn.Module,
    trained: Parameters,
    points: Points,
    *,
    ridge: float,
    initial: Parameters | None = None,
    alpha: float = 1.0,
    scale: float = 1.0,
) -> Row:
    """Risks of the network and of ridge regression with its kernel: the initial one if known, else the trained one's.

    ``ridge`` is the lam it was trained with, in units of the kernel divided by ``scale``. ``acting_*`` and ``reading``:
    ``theory.acting_ridge`` of its training predictions. One (P C) x (P C) eigendecomposition.

    Raises ``ValueError`` as the kernels do, and for a ridge that the kernel does not support.
    """
    kernel_at = dict(initial if initial is not None else trained)
    gram = empirical_ntk(network, kernel_at, points.train_inputs) / scale
    size = len(points.train_inputs)
    test, train = (_predict(network, trained, initial, alpha, x) for x in (points.test_inputs, points.train_inputs))
    acting = _acting(gram, points.train_targets, train, ridge)
    fit = full_kernel_ridge(gram, points.train_targets, ridge)  # overwrites nothing but its own copy
    kernel = linearised_predict(network, kernel_at, points.train_inputs, fit.dual / scale, points.test_inputs)
    network_test, network_train = squared_error(test, points.test_targets), squared_error(train, points.train_targets)
    krr_test = squared_error(kernel, points.test_targets)
    return {
        "P": size,
        "ridge": ridge,
        "network_test": network_test,
        "network_train": network_train,
        "krr_test": krr_test,
        "krr_train": fit.train,
        "krr_loo": fit.loo,
        "kappa_network": ridge * math.sqrt(network_test / network_train) if network_train > 0 else math.nan,
        "kappa_kernel": ridge * math.sqrt(krr_test / fit.train),
        "acting_ridge": acting.ridge,
        "acting_time": acting.time,
        "acting_noise": acting.noise,
        "misfit": acting.told_misfit,
        "reading": acting.reading,
    }


def _predict(
    network: nn.Module, trained: Parameters, initial: Parameters | None, alpha: float, inputs: Tensor
) -> Tensor:
    with torch.no_grad():
        outputs = []
        for x in inputs.split(500):
            value = functional_call(network, dict(trained), (x,))
            before = 0.0 if initial is None else functional_call(network, dict(initial), (x,))
            outputs.append(alpha * (value - before))
    return torch.cat(outputs)


def _acting(gram: Tensor, targets: Tensor, predictions: Tensor, ridge: float) -> Acting:
    """Labels and predictions in the eigenbasis of the full kernel, whose rows are output-major."""
    size = len(targets)
    values, vectors = torch.linalg.eigh(gram / size)
    flat = [vectors.T @ v.T.reshape(-1, 1) for v in (targets, predictions)]
    return acting_ridge(values, flat[0], flat[1], ridge=ridge, num_samples=size)
