"""The empirical neural tangent kernel ``K = J J^T`` of any network, without holding its Jacobian J.

A layer's gradient is an outer product of what enters it and what comes back to it, so its share of the kernel
is a product of two small Gram matrices, ``(d . d') (a . a')``. Only C backward passes to the preactivations
are needed; parameters that do not fit the pattern get their exact Jacobian. Which layers fit is not assumed
from their type alone: each one's gradient of the first input is compared with autograd's.

Letters: n, m inputs; C outputs; rows are output-major: entry ``(c n + i, e m + j)`` belongs to outputs c, e
of inputs i, j.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ridgescope.models.kernels.announce import Announcer
from ridgescope.models.kernels.checks import Parameters, checked_parameters, chosen_parameters
from ridgescope.models.kernels.memory import budget
from ridgescope.models.kernels.precision import full_precision
from ridgescope.models.kernels.store import KernelStore
from ridgescope.models.kernels.stored import stored_kernel
from ridgescope.models.kernels.structured.contract import diagonal_of
from ridgescope.models.kernels.structured.factors import layer_factors, settle
from ridgescope.models.kernels.structured.layout import Layout, deal, make_layout
from ridgescope.models.kernels.structured.plan import Plan, make_plan
from ridgescope.models.kernels.structured.tiles import compute_tiles
from ridgescope.models.kernels.team import Team
from ridgescope.models.network import require_choice


def empirical_ntk(
    model: nn.Module,
    params: Parameters | None,
    x1: Shaped[Tensor, " n *shape"],
    x2: Shaped[Tensor, " m *shape"] | None = None,
    *,
    form: str = "full",
    outputs: Sequence[int] | None = None,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | float | None = None,
    path: str | Path | KernelStore | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> Float[Tensor, "rows columns"]:
    """``J(x1) J(x2)^T``: ``(n C, m C)``, or the trace form ``(n, m)``.

    ``form="full"`` has rows ``c n + i``; ``form="trace"`` is ``(1/C) sum_c K_cc``. Nothing is divided out:
    use ``model.kernel_scale`` to compare widths. ``x2=None`` means x1, computes half and is exactly
    symmetric. ``params`` (name -> tensor) replaces the model's own, so that one model serves many sets of
    weights.

    ``outputs``: the C outputs that count, in this order (all). ``parameters``: names of parameters or modules
    that count (all). ``dtype=torch.float64`` sums a single-precision network's gradients in double precision;
    by default the kernel has the dtype of the parameters. TF32 and autocast are off throughout.

    ``memory``: what may be held at once, as "4GB" or in bytes, the kernel included; by default half of what is
    free, or 1.5 GB beside the kernel if that is less. ``path``: a folder that the kernel is written to, tile by
    tile; it is returned mapped from disk and need not fit ``memory``. A call that was killed goes on
    with the tiles that it finished, and ends with the same bits; damaged tiles are computed again. A
    `KernelStore` instead of a folder names the folder by what is asked for.
    ``group``: processes that compute the kernel together, each with the same arguments; all return the whole.

    Source: Novak, Sohl-Dickstein and Schoenholz 2022, arXiv:2206.08720 (structured derivatives).

    Cost: C backward passes per input, then per pair of inputs C^2 o products for a dense layer of o neurons
    (k for the readout of k features), for a convolution with s pixels and fan-in k the least of C^2 o k and
    s^2 k + s^2 C o + C^2 s o (for the last one before a pooled readout o k + C^2 o); half of that for x2=None. The
    trace form has C in place of C^2, and 1 for a dense layer before the readout. Where the layers' factors of all
    inputs do not fit the memory, inputs pass through the network more than once. More than 10 seconds are announced on
    stderr.

    Raises ``ValueError`` for NaN weights, mixed dtypes or devices, dropout or BatchNorm in training mode,
    outputs that are not ``(n, C)``, a kernel that fits neither ``memory`` nor the disk, and a ``path`` that
    holds another kernel.

    >>> import torch
    >>> net = nn.Linear(3, 2, bias=False).double()
    >>> empirical_ntk(net, None, torch.ones(1, 3, dtype=torch.float64))
    tensor([[3., 0.],
            [0., 3.]], dtype=torch.float64)
    """
    require_choice("form", form, ("full", "trace"))
    with full_precision(x1.device):
        team = Team(group)
        with team.together():
            plan = _plan(model, params, x1, x2, form, outputs, parameters, dtype)
        if path is not None:
            return stored_kernel(plan, x1, x2, path, memory, team)
        return _in_memory(plan, x1, x2, memory, team, by_module=False)[0]


def module_ntks(
    model: nn.Module,
    params: Parameters | None,
    x1: Shaped[Tensor, " n *shape"],
    x2: Shaped[Tensor, " m *shape"] | None = None,
    *,
    form: str = "full",
    outputs: Sequence[int] | None = None,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | float | None = None,
) -> dict[str, Float[Tensor, "rows columns"]]:
    """The share of each module's own parameters in `empirical_ntk`, which is their sum; in one pass.

    Memory: one kernel for each module that has parameters, within ``memory``.
    """
    require_choice("form", form, ("full", "trace"))
    with full_precision(x1.device):
        plan = _plan(model, params, x1, x2, form, outputs, parameters, dtype)
        kernels = _in_memory(plan, x1, x2, memory, Team(None), by_module=True)
        return dict(zip(plan.names, kernels, strict=True))


def ntk_diagonal(
    model: nn.Module,
    params: Parameters | None,
    x: Shaped[Tensor, " n *shape"],
    *,
    outputs: Sequence[int] | None = None,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    memory: str | int | float | None = None,
) -> Float[Tensor, " rows"]:
    """The diagonal of `empirical_ntk`, ``|d f_c / d theta|^2`` at row ``c n + i``, without the rest of it.

    Its mean over outputs, ``diagonal.view(C, n).mean(0)``, is that of the trace form. Cost: C backward passes per
    input, and for each the gradients of its convolutions.
    """
    with full_precision(x.device):
        plan = _plan(model, params, x, None, "full", outputs, parameters, dtype)
        size = plan.num_outputs * len(x) * plan.dtype.itemsize
        room = budget(memory, size, x.device)

        def layout_of(plan: Plan) -> Layout:
            return make_layout(plan, len(x), 1, symmetric=False, budget=room, result=size, stored=False)

        plan, first = settle(plan, x, lambda plan: layout_of(plan).sizes)
        layout = layout_of(plan)
        diagonal = torch.zeros(plan.num_outputs, len(x), dtype=plan.dtype, device=x.device)
        for start in range(0, len(x), layout.strip):
            rows = slice(start, start + layout.strip)
            for factor in first or layer_factors(plan, x[rows], layout.chunk):
                diagonal[:, rows] += diagonal_of(factor, plan.num_outputs, layout.scratch)
            first.clear()
        return diagonal.flatten()


def _plan(
    model: nn.Module,
    params: Parameters | None,
    x1: Tensor,
    x2: Tensor | None,
    form: str,
    outputs: Sequence[int] | None,
    parameters: Sequence[str] | None,
    dtype: torch.dtype | None,
) -> Plan:
    checked = checked_parameters(model, params, x1, *(() if x2 is None else (x2,)))
    chosen = chosen_parameters(parameters, checked)
    if dtype is not None:
        require_choice("dtype", str(dtype), ("torch.float32", "torch.float64"))
    return make_plan(model, checked, x1, outputs, trace=form == "trace", chosen=chosen, dtype=dtype)


def _in_memory(
    plan: Plan, x1: Tensor, x2: Tensor | None, memory: str | int | float | None, team: Team, *, by_module: bool
) -> list[Tensor]:
    rows, columns, blocks = len(x1), len(x1 if x2 is None else x2), plan.blocks
    count = len(plan.names) if by_module else 1
    size = count * blocks**2 * rows * columns * plan.dtype.itemsize
    room = min(team.everyones(budget(memory, size, x1.device)))

    def layout_of(plan: Plan) -> Layout:
        return make_layout(
            plan, rows, columns, symmetric=x2 is None, budget=room, result=size, stored=False, shared=team.size
        )

    with team.together():
        plan, first = settle(
            plan, x1, lambda plan: layout_of(plan).sizes if team.rank == 0 else (0, layout_of(plan).chunk)
        )
    layout = layout_of(plan)
    kernels = [torch.zeros(blocks, rows, blocks, columns, dtype=plan.dtype, device=x1.device) for _ in range(count)]
    tiles = deal(layout.tiles(), team.size)[team.rank]
    announcer = Announcer(plan, layout, tiles, stored=0, quiet=team.rank > 0)
    with team.together():
        for tile in compute_tiles(
            plan,
            layout,
            x1,
            x2,
            tiles,
            lambda tile: [kernel[:, tile.rows, :, tile.columns] for kernel in kernels],
            first,
        ):
            if x2 is None:
                above = tile.columns.start if tile.square else tile.rows.stop
                mirrored = slice(tile.rows.start, above)
                for kernel in kernels:
                    kernel[:, tile.columns, :, mirrored] = kernel[:, mirrored, :, tile.columns].permute(2, 3, 0, 1)
            announcer.advance(tile)
    for kernel in kernels:
        team.add(kernel)
        if plan.trace:
            kernel /= plan.num_outputs
    return [kernel.view(blocks * rows, blocks * columns) for kernel in kernels]
