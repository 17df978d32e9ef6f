"""What every kernel asks of a network: whole parameters, matching inputs, no coupling within a batch."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Parameters = Mapping[str, Tensor]


def checked_parameters(model: nn.Module, params: Parameters | None, *inputs: Tensor) -> dict[str, Tensor]:
    """The parameters to use, detached; ``ValueError`` where the network is no fixed function of one input."""
    own = dict(model.named_parameters())
    params = own if params is None else params
    _require_same_names(set(own), set(params))
    for name, value in params.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"parameter {name} has shape {tuple(value.shape)}, the model's has "
                f"{tuple(own[name].shape)}; pass one network's slice of a stacked dict"
            )
        if not _is_finite(value):
            raise ValueError(f"parameter {name} holds NaN or infinity; was the run that made it diverging?")
    _require_one_kind(params)
    for x in inputs:
        _require_matching_input(x, params)
    _require_fixed_function(model)
    return {name: value.detach() for name, value in params.items()}


def _require_same_names(expected: set[str], given: set[str]) -> None:
    if not expected:
        raise ValueError("the model has no parameters, so its tangent kernel is empty; pass a trainable network")
    if expected != given:
        missing, unknown = sorted(expected - given), sorted(given - expected)
        raise ValueError(
            f"params do not fit the model: missing {missing}, unknown {unknown}; "
            "use the names of model.named_parameters()"
        )


def _require_one_kind(params: Parameters) -> None:
    first, one = next(iter(params.items()))
    for name, value in params.items():
        if (value.dtype, value.device) != (one.dtype, one.device):
            raise ValueError(
                f"parameter {name} is {value.dtype} on {value.device} but {first} is {one.dtype} on {one.device}; "
                "convert the model as a whole, model.to(device, dtype)"
            )


def _require_matching_input(x: Tensor, params: Parameters) -> None:
    name, value = next(iter(params.items()))
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"inputs must be a batch (n, ...) with n >= 1, got shape {tuple(x.shape)}")
    if x.device != value.device or (x.is_floating_point() and x.dtype != value.dtype):
        raise ValueError(
            f"inputs are {x.dtype} on {x.device} but parameter {name} is {value.dtype} on "
            f"{value.device}; convert one of them"
        )
    require_finite(x)


def require_finite(x: Tensor) -> None:
    if not _is_finite(x):
        raise ValueError("inputs hold NaN or infinity; clean the data first")


def _is_finite(x: Tensor) -> bool:
    """In one pass over the numbers and without an array of truth values: extremes of NaN are NaN."""
    return not x.is_floating_point() or x.numel() == 0 or all(math.isfinite(float(end)) for end in x.detach().aminmax())


def _require_fixed_function(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{kind} drops units at random in training mode; call model.eval() first")
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{kind} couples the samples of a batch; call model.eval() first, with track_running_stats=True"
            )


def checked_outputs(model: nn.Module, params: Parameters, x: Tensor) -> int:
    """The number of outputs, after seeing that one input alone gives what it gives inside a batch."""
    with torch.no_grad():
        batch, alone = (
            functional_call(model, dict(params), (x[:2],)),
            functional_call(model, dict(params), (x[:1],)),
        )
    require_matrix(batch, len(x[:2]))
    require_uncoupled(batch, alone)
    return batch.shape[1]


def require_matrix(outputs: object, inputs: int) -> None:
    """``ValueError`` where what the model returned for some inputs is no tensor (inputs, outputs)."""
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returns {type(outputs).__name__}, kernels need a tensor (n, num_outputs); wrap it in a module "
            "that returns the one output meant"
        )
    if outputs.ndim != 2 or len(outputs) != inputs:
        raise ValueError(
            f"the model maps a batch of {inputs} to shape {tuple(outputs.shape)}; "
            "kernels need outputs (n, num_outputs), so flatten or reduce them"
        )


def require_uncoupled(batch: Tensor, alone: Tensor) -> None:
    """``ValueError`` where the first row of a batch's outputs is not what the first input gives alone."""
    batch, alone = batch.detach(), alone.detach()
    # different batch sizes may sum in another order: rounding, far below sqrt(eps)
    tolerance = math.sqrt(torch.finfo(batch.dtype).eps) * float(batch.abs().max())
    if float((batch[:1] - alone).abs().max()) > tolerance:
        raise ValueError(
            "an input's output changes with the rest of its batch, or at random; "
            "call model.eval(), or remove what couples the samples"
        )


def chosen_outputs(outputs: Iterable[int] | None, num_outputs: int) -> list[int]:
    """The indices asked for; ``ValueError`` for one that does not exist, or none, or one twice."""
    rows = list(range(num_outputs) if outputs is None else outputs)
    if not rows or len(set(rows)) < len(rows) or not set(rows) <= set(range(num_outputs)):
        raise ValueError(f"outputs={rows} must be different numbers from 0 to {num_outputs - 1}")
    return rows


def chosen_parameters(names: Sequence[str] | None, params: Parameters) -> list[str]:
    """The parameters that bear one of the names or belong to a module of that name."""
    if names is None:
        return list(params)
    if isinstance(names, str):
        raise ValueError(f"parameters={names!r} must be a list of names; write [{names!r}]")
    for name in names:
        if not any(_belongs(own, name) for own in params):
            raise ValueError(f"parameters: no parameter or module is called {name!r}; there are {', '.join(params)}")
    chosen = [own for own in params if any(_belongs(own, name) for name in names)]
    if not chosen:
        raise ValueError("parameters=[] chooses nothing; name at least one parameter or module")
    return chosen


def _belongs(own: str, name: str) -> bool:
    return own == name or own.startswith(f"{name}.")
