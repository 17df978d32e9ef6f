"""Predictions of kernel ridge regression with the full empirical NTK, without the test-train kernel.

With weights ``u`` on the training outputs the prediction is ``K(x, X) u = J(x) (J(X)^T u)``: one vector in
parameter space, then one directional derivative per evaluation point. It is also the network's own
first-order change, ``d/de h(theta + e v)`` along ``v = J(X)^T u``.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from ridgescope.models.kernels.checks import Parameters, checked_outputs, checked_parameters


def linearised_predict(
    model: nn.Module,
    params: Parameters | None,
    x_train: Shaped[Tensor, " n *shape"],
    dual: Float[Tensor, " *rows"],
    x_eval: Shaped[Tensor, " m *shape"],
    *,
    batch: int = 500,
) -> Float[Tensor, "m outputs"]:
    """``J(x_eval) J(x_train)^T dual``, shape (m, C).

    ``dual`` solves the regression, for instance ``(K + n lam)^-1 y``: either ``(n C,)`` in the row order of
    `empirical_ntk` (``c n + i``) or ``(n, C)``. Equal to the cross kernel times ``dual`` up to rounding.

    Cost: a forward and a backward pass over x_train, two forward passes over x_eval. Memory: that of
    ``batch`` inputs, and two sets of parameters. Raises ``ValueError`` as `empirical_ntk` does, and where
    dual has another size.
    """
    params = checked_parameters(model, params, x_train, x_eval)
    num_outputs = checked_outputs(model, params, x_train)
    weights = _per_input(dual, len(x_train), num_outputs, next(iter(params.values())).dtype)
    direction = {name: torch.zeros_like(value) for name, value in params.items()}
    for x, u in zip(x_train.split(batch), weights.split(batch), strict=True):
        _, pull_back, *_ = vjp(lambda some, x=x: functional_call(model, some, (x,)), params)
        for name, gradient in pull_back(u)[0].items():
            direction[name] += gradient
    predictions = [
        jvp(lambda some, x=x: functional_call(model, some, (x,)), (params,), (direction,))[1]
        for x in x_eval.split(batch)
    ]
    return torch.cat(predictions).detach()


def _per_input(dual: Tensor, num_inputs: int, num_outputs: int, dtype: torch.dtype) -> Tensor:
    if dual.dtype != dtype:
        raise ValueError(f"dual is {dual.dtype}, the parameters are {dtype}; convert one of them")
    if dual.shape == (num_inputs * num_outputs,):
        return dual.view(num_outputs, num_inputs).T
    if dual.shape == (num_inputs, num_outputs):
        return dual
    raise ValueError(
        f"dual has shape {tuple(dual.shape)}; expected ({num_inputs * num_outputs},) or "
        f"({num_inputs}, {num_outputs}) for {num_inputs} inputs and {num_outputs} outputs"
    )
