"""The empirical neural tangent kernel ``K = J J^T`` of any network, without holding its Jacobian J.

A layer's gradient is an outer product of what enters it and what comes back to it, so its share of the kernel
is a product of two small Gram matrices, ``(d . d') (a . a')``. Only C backward passes to the preactivations
are needed; parameters that do not fit the pattern get their exact Jacobian. Which layers fit is not assumed
from their type alone: each one's gradient is compared with autograd's on a few inputs first.

Letters: n, m inputs; C outputs; rows are output-major: entry ``(c n + i, e m + j)`` belongs to outputs c, e
of inputs i, j.
"""

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ridgescope.models.kernels.checks import Parameters, checked_outputs, checked_parameters
from ridgescope.models.kernels.contract import accumulate, mirror
from ridgescope.models.kernels.factors import Plan, layer_factors, make_plan
from ridgescope.models.network import require_choice


def empirical_ntk(
    model: nn.Module,
    params: Parameters | None,
    x1: Shaped[Tensor, " n *shape"],
    x2: Shaped[Tensor, " m *shape"] | None = None,
    *,
    form: str = "full",
    memory_bytes: int | float = 1.5e9,
) -> Float[Tensor, "rows columns"]:
    """``J(x1) J(x2)^T`` over all parameters, in their dtype: ``(n C, m C)``, or the trace form ``(n, m)``.

    ``form="full"`` has rows ``c n + i``; ``form="trace"`` is ``(1/C) sum_c K_cc``. Nothing is divided out:
    use ``model.kernel_scale`` to compare widths. ``x2=None`` means x1, computes half and is exactly
    symmetric. ``params`` (name -> tensor) replaces the model's own, so that one model serves many sets of
    weights.

    Source: Novak, Sohl-Dickstein and Schoenholz 2022, arXiv:2206.08720 (structured derivatives).

    Cost: C backward passes per input, then per pair of inputs C^2 o products for a dense layer of o neurons
    (k for the readout of k features), for a convolution with s pixels and fan-in k the least of C^2 o k and
    s^2 k + s^2 C o + C^2 s o; half of that for x2=None. The trace form has C in place of C^2.
    Memory: the result, ``n C m C`` numbers, and ``memory_bytes`` for all else; where the layers' factors of
    all inputs do not fit, inputs are taken in blocks and pass through the network more than once.

    Raises ``ValueError`` for NaN weights, mixed dtypes or devices, dropout or BatchNorm in training mode,
    outputs that are not ``(n, C)``, and a ``memory_bytes`` too small for a single input.

    >>> import torch
    >>> net = nn.Linear(3, 2, bias=False).double()
    >>> empirical_ntk(net, None, torch.ones(1, 3, dtype=torch.float64))
    tensor([[3., 0.],
            [0., 3.]], dtype=torch.float64)
    """
    require_choice("form", form, ("full", "trace"))
    params = checked_parameters(model, params, x1, *(() if x2 is None else (x2,)))
    num_outputs = checked_outputs(model, params, x1)
    plan = make_plan(model, params, x1, num_outputs, trace=form == "trace")
    rows, columns = len(x1), len(x1) if x2 is None else len(x2)
    block, other_block, chunk = _blocks(plan, rows, columns, x1, memory_bytes)
    outputs = num_outputs if form == "full" else 1
    kernel = next(iter(params.values())).new_zeros(outputs, len(x1), outputs, columns)
    for start in range(0, rows, block):
        p = slice(start, min(start + block, rows))
        left = layer_factors(plan, x1[p], chunk)
        if x2 is None:
            accumulate(kernel[:, p, :, p], left, left, symmetric=True, memory=memory_bytes / 10)
            mirror(kernel[:, p, :, p])
        for other in range(p.stop if x2 is None else 0, columns, other_block):
            q = slice(other, other + other_block)
            right = layer_factors(plan, (x1 if x2 is None else x2)[q], chunk)
            accumulate(kernel[:, p, :, q], left, right, symmetric=False, memory=memory_bytes / 10)
            if x2 is None:
                kernel[:, q, :, p] = kernel[:, p, :, q].permute(2, 3, 0, 1)
    if form == "trace":
        kernel /= num_outputs
    return kernel.reshape(outputs * len(x1), outputs * columns)


def _blocks(plan: Plan, rows: int, columns: int, x: Tensor, memory_bytes: int | float) -> tuple[int, int, int]:
    """Inputs whose factors are held at once, on either side, and inputs per pass.

    The left side gets half the memory, since the right one passes through the network for each of its blocks;
    the right side gets an eighth, a pass a quarter.
    """
    size = x.element_size() if x.is_floating_point() else next(iter(plan.params.values())).element_size()
    held, working = size * plan.numbers_per_input, size * plan.working_numbers_per_input
    block, other = int(memory_bytes / 2 / held), int(memory_bytes / 8 / held)
    chunk = int(memory_bytes / 4 / working)
    if min(other, chunk) < 1:
        raise ValueError(
            f"memory_bytes={memory_bytes:g} cannot hold one input of this network; "
            f"pass at least {max(8 * held, 4 * working):.2g}"
        )
    fast = max(8, int(PASS_BYTES / (size * plan.largest_numbers_per_input)))
    return min(block, rows), min(other, columns), min(chunk, fast, 256)


PASS_BYTES = 2e6  # of the largest array in a pass: it stays in cache, and its pages are used again
