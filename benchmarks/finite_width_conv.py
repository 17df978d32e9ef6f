"""The finite-width law of one or two convolutions against kernel regression with drawn tangent kernels.

    python benchmarks/finite_width_conv.py --out FILE.csv [--data digits] [--readouts flatten pool] [--widths 4 16 64]
    python benchmarks/finite_width_conv.py --out FILE.csv --strides 2 2        two convolutions: one stride for each
    python benchmarks/finite_width_conv.py --summary FILE.csv ...
    python benchmarks/finite_width_conv.py --examples --features 2048 8192 32768

One row per cell (`finite_width_cells`), ntk parameterisation, 3x3 filters; the same command goes on where it was
interrupted. ``--examples`` computes the law from five sets of examples and draws nothing.
``--sets K`` repeats each cell for K training sets and says how far the law's mean is from theirs.
``--independent`` takes the readout's and the filters' part of each kernel from two networks, as the law does: what then
is left of a deviation is the cavity step's.
"""

import argparse
import time
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from finite_width_cells import Row, cells, inputs, summary, sweep
from torch import Tensor

from ridgescope.analysis.finite_width import LawKernel, law_kernel, law_of
from ridgescope.analysis.finite_width_conv import FEATURES, channel_kernel
from ridgescope.models import CNN, empirical_ntk, infinite_ntk
from ridgescope.theory.blocks import BlockPrediction, SampledKernel, sampled_law

RIDGES = [1e-2, 1e-3, 1e-4, 1e-5]
BY = ["data", "readout", "P", "width"]


def measure(labels: Row, ridges: list[float], options: argparse.Namespace) -> list[Row]:
    name, size, width, training_set = (labels[key] for key in ("data", "P", "width", "set"))
    x, y = inputs(name, size, options.tests, training_set)

    def network(seed: int) -> CNN:
        return CNN(
            tuple(x.shape[1:]),
            y.shape[1],
            width=width,
            depth=len(options.strides),
            readout=labels["readout"],
            strides=options.strides,
            activation=options.activation,
            generator=torch.Generator().manual_seed(seed),
        )

    def drawn(draw: int) -> Tensor:
        seed = 1000 * width + draw + 100_000 * training_set
        one = network(seed)
        if not options.independent:
            return empirical_ntk(one, None, x, form="trace") / one.kernel_scale
        kernel = empirical_ntk(one, None, x, form="trace", parameters=["readout"])
        other = network(seed + 50_000_000)
        return (kernel + empirical_ntk(other, None, x, form="trace", parameters=["hidden"])) / one.kernel_scale

    began = time.perf_counter()
    if len(options.strides) == 1:
        examples: LawKernel = channel_kernel(network(0), x[:size], x[size:], features=options.features[0])
    else:
        examples = law_kernel(network(0), x[:size], x[size:])
    made = {"made_seconds": time.perf_counter() - began}

    def law(ridge: float, start: list[Tensor] | None) -> BlockPrediction:
        rest = {"ridge": ridge, "width": width, "start": start}
        if isinstance(examples, SampledKernel):
            return sampled_law(examples, y[:size], y[size:], tolerance=options.tolerance, **rest)
        return law_of(examples, y[:size], y[size:], **rest)

    limit = infinite_ntk(network(0), x).ntk
    return cells(labels | made, y, size, ridges, map(drawn, range(options.draws)), limit, law)


def over_sets(table: pd.DataFrame) -> str:
    """One line per cell: the mean over training sets, its error their spread."""
    lines = []
    for key, part in table.groupby(["data", "readout", "P", "width", "ridge"]):
        scale, difference = part.test.mean(), part.law_test - part.test
        lines.append(
            f"{key}: {len(part)} sets, law/simulation {100 * difference.mean() / scale:+.1f} +- "
            f"{100 * difference.std() / len(part) ** 0.5 / scale:.1f} %, single sets "
            f"{100 * (difference / part.test).min():+.1f} to {100 * (difference / part.test).max():+.1f} %, "
            f"excess {100 * (scale / part.infinite_test.mean() - 1):.0f} %"
        )
    return "\n".join(lines)


def examples_error(options: argparse.Namespace) -> str:
    """Relative spread of the law's risk over five sets of examples, for each number of features."""
    size = options.sizes[0]
    x, y = inputs(options.data[0], size, options.tests)
    lines = [
        f"| readout | features | {' | '.join(f'N={w}, lam={r:g}' for w in options.widths for r in options.ridges)} |",
        "|---" * (2 + len(options.widths) * len(options.ridges)) + "|",
    ]
    for readout in options.readouts:
        network = CNN(tuple(x.shape[1:]), 1, width=1, depth=1, readout=readout, generator=torch.Generator())
        for count in options.features:
            risks = []
            for seed in range(0, 50, 10):
                kernel = channel_kernel(network, x[:size], x[size:], features=count, seed=seed)
                grid = [(w, r) for w in options.widths for r in options.ridges]
                risks.append([float(sampled_law(kernel, y[:size], y[size:], width=w, ridge=r).test) for w, r in grid])
            sample = torch.tensor(risks, dtype=torch.float64)
            spread = (sample.std(0) / sample.mean(0)).tolist()
            lines.append(f"| {readout} | {count} | {' | '.join(f'{100 * s:.2f} %' for s in spread)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path, nargs="+")
    parser.add_argument("--examples", action="store_true")
    parser.add_argument("--features", nargs="+", type=int, default=[FEATURES])
    parser.add_argument("--independent", action="store_true")
    parser.add_argument("--data", nargs="+", default=["digits"])
    parser.add_argument("--readouts", nargs="+", default=["flatten", "pool"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100])
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 8, 16, 64])
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--ridges", nargs="+", type=float, default=RIDGES)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--strides", nargs="+", type=int, default=[1])
    parser.add_argument("--draws", type=int, default=48)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--tolerance", type=float, default=1e-11)
    options = parser.parse_args()
    if options.summary:
        print(summary(pd.concat([pd.read_csv(path) for path in options.summary]), BY))
        return
    if options.examples:
        print(examples_error(options))
        return
    grid = product(options.data, options.readouts, options.sizes, options.widths, range(options.sets))
    wanted = [dict(zip((*BY, "set"), key, strict=True)) for key in grid]
    shared = {"activation": options.activation, "strides": " ".join(map(str, options.strides))}
    shared |= {"independent": options.independent, "features": options.features[0]}
    table = sweep(options.out, [shared | key for key in wanted], options.ridges, partial(measure, options=options))
    print(summary(table, BY))
    if options.sets > 1:
        print(over_sets(table))


if __name__ == "__main__":
    main()
