"""Runs neural-tangents on request, in an environment of its own (started by kernel_rivals.py, which names the pins).

Reads one JSON request a line: {"setup": {...}} prepares a kernel, compiles it and answers with the names of its
implementations; {"run": NAME} evaluates it once and answers with the seconds; {"save": PATH} keeps the last result.
"""

import json
import sys
import time
from types import SimpleNamespace

import jax
import jax._src.source_info_util
import numpy as np
from jax.interpreters import ad

ad.source_info_util = jax._src.source_info_util  # gone from jax 0.4.38, still read by neural-tangents 0.6.5
ad.config = SimpleNamespace(jax_enable_checks=False)

import jax.numpy as jnp  # noqa: E402
import neural_tangents as nt  # noqa: E402
from neural_tangents import stax  # noqa: E402

ACTIVATIONS = {"erf": jax.scipy.special.erf, "relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
STAX = {"erf": stax.Erf, "relu": stax.Relu, "gelu": stax.Gelu}


def network(kind, scales, activation, pooled):
    phi = ACTIVATIONS[activation]

    def apply(params, x):
        for weight, scale in zip(params[:-1], scales[:-1], strict=True):
            if kind == "mlp":
                x = scale * (x @ weight)
            else:
                numbers = ("NHWC", "HWIO", "NHWC")
                x = scale * jax.lax.conv_general_dilated(x, weight, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)
            x = phi(x)
        if kind == "cnn":
            x = x.mean((1, 2)) if pooled else x.reshape(len(x), -1)
        return scales[-1] * (x @ params[-1])

    return apply


def inputs(setup, arrays):
    x = arrays["x"]
    return jnp.asarray(x.transpose(0, 2, 3, 1) if setup["kind"] == "cnn" else x)


def weights(setup, arrays):
    """In the layout of stax. A transposed copy inside the function would cost structured derivatives 50 times more."""
    params = []
    for i in range(setup["layers"]):
        weight = arrays[f"w{i}"]
        if weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        elif setup["kind"] == "cnn" and not setup["pooled"]:  # pixels before channels
            grid = weight.reshape(len(weight), -1, *arrays["x"].shape[2:])
            weight = grid.transpose(2, 3, 1, 0).reshape(-1, len(weight))
        else:
            weight = weight.T
        params.append(jnp.asarray(np.ascontiguousarray(weight)))
    return params


def empirical(setup, arrays):
    """Blocks of the upper triangle (a favour: nt.batch would compute the whole square), for two batch sizes."""
    params = weights(setup, arrays)
    x = inputs(setup, arrays)
    f = network(setup["kind"], setup["scales"], setup["activation"], setup["pooled"])
    axes = (-1,) if setup["form"] == "trace" else ()
    runs = {}
    for name in setup["implementations"]:
        implementation = getattr(nt.NtkImplementation, name)
        kernel = jax.jit(nt.empirical_ntk_fn(f, trace_axes=axes, vmap_axes=0, implementation=implementation))
        for batch in sorted({len(x), len(x) // 2}):

            def run(kernel=kernel, batch=batch):
                starts = range(0, len(x), batch)
                blocks = {
                    (i, j): kernel(x[i : i + batch], x[j : j + batch], params) for i in starts for j in starts if j >= i
                }
                return jax.block_until_ready(blocks)

            runs[f"{name} {batch}"] = run
    return runs


def infinite(setup, arrays):
    x = inputs(setup, arrays)
    layers = []
    for std in setup["stds"][:-1]:
        if setup["kind"] == "mlp":
            layers += [stax.Dense(1, W_std=std, b_std=None), STAX[setup["activation"]]()]
        else:
            layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=std, b_std=None), STAX[setup["activation"]]()]
    if setup["kind"] == "cnn":
        layers.append(stax.GlobalAvgPool() if setup["pooled"] else stax.Flatten())
    layers.append(stax.Dense(1, W_std=setup["stds"][-1], b_std=None))
    kernel = jax.jit(stax.serial(*layers)[2], static_argnames="get")
    runs = {}
    for batch in setup["batches"]:

        def run(batch=batch):
            starts = range(0, len(x), batch)
            blocks = {
                (i, j): kernel(x[i : i + batch], x[j : j + batch], get="ntk") for i in starts for j in starts if j >= i
            }
            return jax.block_until_ready(blocks)

        runs[f"stax {batch}"] = run
    return runs


def main():
    runs, last = {}, {}
    for line in sys.stdin:
        request = json.loads(line)
        if "setup" in request:
            setup = request["setup"]
            arrays = np.load(setup["file"])
            runs = (infinite if setup["what"] == "infinite" else empirical)(setup, arrays)
            answer = {}
            for name, run in list(runs.items()):
                try:
                    run()  # compiles
                    start = time.perf_counter()
                    run()
                    answer[name] = time.perf_counter() - start
                except Exception as error:  # out of memory, or a rule that is missing
                    answer[name] = None
                    print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        elif "run" in request:
            start, busy = time.perf_counter(), time.process_time()
            last = runs[request["run"]]()
            answer = [time.perf_counter() - start, time.process_time() - busy]
        else:
            np.savez(request["save"], **{f"{i},{j}": np.asarray(block) for (i, j), block in last.items()})
            answer = True
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
