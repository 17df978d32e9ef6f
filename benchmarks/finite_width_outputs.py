"""Ten outputs: the finite-width law of the full C x C tangent kernel and of its trace form, against drawn kernels.

    python benchmarks/finite_width_outputs.py [--models mlp cnn] [--depths 1 2 3] [--widths 64 256] [--draws 24]
    python benchmarks/finite_width_outputs.py --models cnn --depths 2 --strides 2 2 --activation gelu --first-layers 4

Digits, one-hot targets of the first ``--outputs`` classes, ntk parameterisation. Prints a Markdown table: risk of both
forms, simulated and predicted, and the infinite-width risk, which is the same for both. ``--first-layers J``: of two
convolutions, the drawn networks and the law have the same J first layers, so that no error of their number is left.
The law of one hidden layer is shown where `finite_width_law` refuses it as well.
"""

import argparse
import math

import torch
from torch import Tensor

from ridgescope.analysis.finite_width import Form, law_kernel, law_of
from ridgescope.analysis.finite_width_conv2 import DRAWS, FirstLayer
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import CNN, MLP, Network, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge
from ridgescope.theory.blocks import BlockKernel, block_law
from ridgescope.train.data import prepare_data

FORMS: tuple[Form, ...] = ("full", "trace")


def architecture(model: str, depth: int, width: int, outputs: int, draw: int, options: argparse.Namespace) -> Network:
    generator = torch.Generator().manual_seed(1000 * width + draw)
    chosen = {"width": width, "depth": depth, "activation": options.activation, "generator": generator}
    if model == "mlp":
        return MLP((1, 8, 8), outputs, **chosen)
    strides = options.strides if len(options.strides) == depth else 1
    network = CNN((1, 8, 8), outputs, strides=strides, **chosen)
    if options.first_layers and depth == 2:
        held = torch.Generator().manual_seed(draw % options.first_layers)
        first = FirstLayer(network, torch.zeros(1, 1, 8, 8, dtype=torch.float64), held)
        with torch.no_grad():
            network.hidden[0].weight.copy_(first.filters.view_as(network.hidden[0].weight))
    return network


def drawn_risks(network: Network, x: Tensor, y: Tensor, size: int, ridges: list[float]) -> list[list[float]]:
    """Test risk of one network's full and trace kernel, for each ridge."""
    outputs, points = y.shape[1], len(x)
    full = empirical_ntk(network, None, x).view(outputs, points, outputs, points)
    trace = full.diagonal(dim1=0, dim2=2).mean(-1)
    gram = full[:, :size, :, :size].reshape(outputs * size, -1)
    cross = full[:, size:, :, :size].reshape(-1, outputs * size)
    rows = []
    for ridge in ridges:
        coupled = (cross @ full_kernel_ridge(gram, y[:size], ridge).dual).view(outputs, -1).T
        single = trace[size:, :size] @ kernel_ridge(trace[:size, :size], y[:size], ridge).dual
        rows.append([float((y[size:] - f).square().sum(1).mean()) for f in (coupled, single)])
    return rows


def compare(model: str, depth: int, width: int, x: Tensor, y: Tensor, options: argparse.Namespace) -> None:
    size = options.size
    networks = [architecture(model, depth, width, y.shape[1], draw, options) for draw in range(options.draws)]
    found = torch.tensor([drawn_risks(network, x, y, size, options.ridges) for network in networks])
    mean, error = found.mean(0), found.std(0) / options.draws**0.5
    limit = infinite_ntk(networks[0], x).ntk
    cells: list[list[str]] = [[] for _ in options.ridges]
    for form in options.forms:
        k = FORMS.index(form)
        try:
            kernel = law_kernel(networks[0], x[:size], x[size:], form=form, draws=options.first_layers or DRAWS)
        except ValueError as refusal:
            print(refusal)
            kernel = None
        for i, ridge in enumerate(options.ridges):
            predicted = math.nan
            if kernel is not None:
                law = block_law if isinstance(kernel, BlockKernel) else law_of
                predicted = float(law(kernel, y[:size], y[size:], width=width, ridge=ridge).test)
            deviation = f"({100 * (predicted / float(mean[i, k]) - 1):+.1f} %)"
            cells[i].append(f"{mean[i, k]:.4f} ± {error[i, k]:.4f} | {predicted:.4f} {deviation}")
    for ridge, row in zip(options.ridges, cells, strict=True):
        fit = kernel_ridge(limit[:size, :size], y[:size], ridge)
        infinite = float((y[size:] - limit[size:, :size] @ fit.dual).square().sum(1).mean())
        print(f"| {model} | {depth} | {width} | {ridge:g} | {' | '.join(row)} | {infinite:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["mlp", "cnn"], default=["mlp"])
    parser.add_argument("--depths", nargs="+", type=int, default=[1])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--strides", nargs="+", type=int, default=[])
    parser.add_argument("--first-layers", type=int, default=0)
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--ridges", nargs="+", type=float, default=[1e-2, 1e-4])
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--outputs", type=int, default=10)
    options = parser.parse_args()
    sizes = {"train_size": options.size, "pool_size": 1297, "test_size": options.tests}
    data = prepare_data("digits", **sizes, num_draws=1, seed=7)
    index = data.splits.train[0]
    x = torch.cat([data.pool_inputs[index], data.test_inputs])
    y = torch.cat([data.pool_targets[index], data.test_targets])[:, : options.outputs].contiguous()
    columns = "".join(f" {form}: drawn | law |" for form in options.forms)
    print(f"| model | depth | N | lam |{columns} infinite width |\n" + "|---" * (5 + 2 * len(options.forms)) + "|")
    for model in options.models:
        for depth in options.depths:
            for width in options.widths:
                compare(model, depth, width, x, y, options)


if __name__ == "__main__":
    main()
