"""``ridgescope audit``: kappa, attribution and verdicts for a network that is not ours."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from rich.console import Console
from torch import Tensor, nn

from ridgescope.analysis.audit import KernelAudit, audit_kernel
from ridgescope.analysis.audit_attribution import attribute_kernels
from ridgescope.analysis.audit_networks import Points, audit_network
from ridgescope.analysis.claims import Claim, claims_from
from ridgescope.analysis.faults import Finding, kernel_findings, network_findings
from ridgescope.analysis.foreign import Given, build, load_points, load_weights, trained_files
from ridgescope.analysis.report.audit_page import write_audit
from ridgescope.analysis.report.audit_terminal import print_audit
from ridgescope.analysis.rows import FOREIGN
from ridgescope.analysis.verdict import evaluate, failed_required
from ridgescope.models import empirical_ntk
from ridgescope.train.config import DataConfig, checked, parse_memory
from ridgescope.train.data import prepare_data
from ridgescope.train.ensemble import tried
from ridgescope.train.entry import one_line_errors
from ridgescope.train.errors import UserError
from ridgescope.train.progress import duration, progress, say
from ridgescope.train.provenance import environment

CLAIM_FAILED = 3
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass
class AuditConfig:
    """See docs/audit.md."""

    module: str = MISSING  # package.module:factory of a torch.nn.Module
    arguments: dict[str, Any] = field(default_factory=dict)  # of the factory
    checkpoint: str | None = None  # .safetensors, or a state_dict in .pt or .pth
    trained: str | None = None  # folder of trained networks, seed0-draw0.safetensors and so on
    initial: str | None = None  # folder of their initial weights by the same names: kernels at initialisation
    train_ridge: float | None = None  # lam that the trained networks had, in units of the kernel
    alpha: float = 1.0  # of f = alpha (h - h0), where initial weights are given
    dataset: str | None = None  # package.module:function, instead of data
    data: DataConfig = MISSING
    channels: int | None = None  # repeat one input channel, for networks made for colour
    points: int = 500  # M, of which training sets are drawn
    sizes: list[int] = field(default_factory=lambda: [50, 200])  # P
    ridges: list[float] = field(default_factory=lambda: [1e-2, 1e-3, 1e-4])  # in units of mean K(x, x)
    num_draws: int = 8  # training sets
    num_seeds: int = 1  # networks of the factory; from 3 on the risk is attributed
    seed: int = 0
    dtype: str = "float64"
    memory: str = "1.5GB"  # of the kernel computation
    name: str = "audit"
    output: str = "runs"
    claims: dict[str, Claim] = field(default_factory=dict)  # conf/claims/audit.yaml
    network_claims: dict[str, Claim] = field(default_factory=dict)
    level: float = 0.05


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="audit")
@one_line_errors
def audit(config: DictConfig) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    plain = checked(config)
    started = time.monotonic()
    try:
        verdicts, page = run_audit(plain, command=" ".join(["ridgescope", "audit", *sys.argv[1:]]))
    except UserError:
        raise
    except ValueError as error:  # a kernel or network that refuses its inputs says so in one line
        raise UserError(str(error)) from error
    say(f"the audit took {duration(time.monotonic() - started)}")
    print(f"\nreport: {page}")
    failed = failed_required(verdicts)
    for line in failed:
        say(f"ridgescope: {line}")
    if failed:
        raise SystemExit(CLAIM_FAILED)


def run_audit(plain: dict[str, Any], *, command: str) -> tuple[pd.DataFrame, Path]:
    """The audit that a plain configuration describes: its verdicts, and the path of the page."""
    if plain["dtype"] not in _DTYPES:
        raise UserError(f"dtype={plain['dtype']!r} is unknown; choose float64 or float32")
    dtype = _DTYPES[plain["dtype"]]
    if not 0 < plain["level"] < 0.5:
        raise UserError(f"level={plain['level']} is the chance of a wrong verdict; choose 0 < level < 0.5")
    _check(plain)
    given = _points(plain, dtype)
    model = plain["module"].rpartition(":")[2]
    grams, network = _kernels(plain, given, dtype)
    scale = float(grams[0].diagonal().mean())
    if not scale > 0:
        raise UserError(f"{model} has a zero tangent kernel on these inputs; are its parameters trainable?")
    grams = [gram / float(gram.diagonal().mean()) for gram in grams]
    targets = given.targets[: len(grams[0])]
    worlds = 3 * plain["num_draws"] * len(plain["sizes"])
    with progress("auditing training sets", worlds) as steps:
        kernel = audit_kernel(
            grams[0],
            targets,
            **{key: plain[key] for key in ("sizes", "ridges", "num_draws", "seed")},
            name=model,
            label=plain["dataset"] or plain["data"]["name"],
            precision=dtype,
            advance=steps.advance,
        )
    verdicts = evaluate(kernel.table, claims_from(plain["claims"]), level=plain["level"])
    findings = kernel_findings(kernel.table, grams[0], model)
    networks = _networks(plain, network, dtype)
    if len(networks):
        judged = evaluate(networks, claims_from(plain["network_claims"]), level=plain["level"])
        verdicts = pd.concat([verdicts, judged], ignore_index=True)
        findings += network_findings(networks)
    attribution = _attribution(plain, grams, targets)
    folder = Path(plain["output"]) / plain["name"]
    return _finish(folder, kernel, verdicts, findings, networks, attribution, model, plain, command)


def _check(plain: dict[str, Any]) -> None:
    """What can be refused before anything is computed."""
    seeds = plain["num_seeds"]
    if seeds < 1 or seeds == 2:
        raise UserError(f"num_seeds={seeds} cannot be split into terms; use 1 for no attribution, or at least 3")
    if plain["checkpoint"] and seeds > 1:
        raise UserError(f"one checkpoint has one set of weights; drop num_seeds={seeds} or checkpoint")
    if plain["trained"] and (plain["dataset"] is None or plain["train_ridge"] is None):
        raise UserError(
            "trained networks need to be told what they were trained on and how: dataset=package.module:function that "
            "returns (train inputs, train targets, test inputs, test targets), and train_ridge=LAM"
        )
    if plain["trained"]:
        trained_files(Path(plain["trained"]))


def _finish(
    folder: Path,
    kernel: KernelAudit,
    verdicts: pd.DataFrame,
    findings: Sequence[Finding],
    networks: pd.DataFrame,
    attribution: pd.DataFrame,
    model: str,
    plain: dict[str, Any],
    command: str,
) -> tuple[pd.DataFrame, Path]:
    facts = environment()
    metadata = {
        "title": f"Audit of {model}",
        "created": facts["created"],
        "command": command,
        "versions": {"ridgescope": facts["ridgescope"], "python": facts["python"], **facts["packages"]},
        "hardware": f"{facts['processor']}, {facts['cores']} cores",
        "git commit": facts["commit"] or "installed package",
        "settings": {key: plain[key] for key in ("module", "points", "sizes", "ridges", "num_draws", "num_seeds")},
    }
    shared: dict[str, Any] = {"table": kernel.table, "verdicts": verdicts, "findings": findings, "notes": kernel.notes}
    shared |= {"networks": networks, "attribution": attribution}
    print_audit(**shared, console=Console(highlight=False))
    page = write_audit(folder, **shared, metadata=metadata)
    return verdicts, page


def _points(plain: dict[str, Any], dtype: torch.dtype) -> Given:
    if plain["dataset"]:
        given = load_points(plain["dataset"], 0, dtype)
    else:
        sizes = {"pool_size": plain["points"], "train_size": 1, "test_size": 1}
        data = prepare_data(**(plain["data"] | sizes), num_draws=1, dtype=dtype)
        given = Given(data.pool_inputs, data.pool_targets.double(), None)
    if len(given.inputs) < 30:
        raise UserError(f"{len(given.inputs)} points are too few for an audit; pass at least 30, better some hundreds")
    targets = given.targets - given.targets.mean(0)
    if not float(targets.abs().max()) > 0:
        raise UserError("the targets do not vary over the points, so there is no risk to explain; check the labels")
    return Given(_with_channels(given.inputs, plain["channels"]), given.targets, given.points)


def _with_channels(inputs: Tensor, channels: int | None) -> Tensor:
    if channels is None:
        return inputs
    if inputs.ndim != 4 or inputs.shape[1] != 1:
        raise UserError(f"channels={channels} repeats one channel, but the inputs have shape {tuple(inputs.shape[1:])}")
    return inputs.expand(-1, channels, -1, -1).contiguous()


def _kernels(plain: dict[str, Any], given: Given, dtype: torch.dtype) -> tuple[list[Tensor], nn.Module]:
    """Trace kernels (M, M) in float64, one for each seed, and the network of the first."""
    inputs = given.inputs[: plain["points"]]
    memory = float(parse_memory(plain["memory"]))
    grams, first = [], None
    with progress("kernels", plain["num_seeds"]) as steps:
        for seed in range(plain["seed"], plain["seed"] + plain["num_seeds"]):
            network = build(plain["module"], plain["arguments"], seed, dtype)
            if plain["checkpoint"]:
                load_weights(network, Path(plain["checkpoint"]))
            _try(network, inputs, plain["module"])
            grams.append(empirical_ntk(network, None, inputs, form="trace", memory=memory).double())
            first = network if first is None else first
            steps.advance()
    assert first is not None
    return grams, first


def _try(network: nn.Module, inputs: Tensor, name: str) -> None:
    outputs = tried(network, inputs[:2], name)
    if not isinstance(outputs, Tensor) or not bool(torch.isfinite(outputs).all()):
        raise UserError(
            f"{name} does not return finite tensors (n, outputs) for these inputs; check its initialisation"
        )


def _networks(plain: dict[str, Any], network: nn.Module, dtype: torch.dtype) -> pd.DataFrame:
    """One row for each trained network that the user gave."""
    if plain["trained"] is None:
        return pd.DataFrame()
    rows = []
    for seed, draw, path in trained_files(Path(plain["trained"])):
        points = load_points(plain["dataset"], draw, dtype).points
        if points is None:
            raise UserError(f"{plain['dataset']} returned two parts; trained networks need four, with the test points")
        load_weights(network, path)
        weights = {name: value.detach().clone() for name, value in network.named_parameters()}
        initial = None
        if plain["initial"] is not None:
            load_weights(network, Path(plain["initial"]) / path.name)
            initial = {name: value.detach().clone() for name, value in network.named_parameters()}
        row = audit_network(
            network, weights, _doubled(points), ridge=plain["train_ridge"], initial=initial, alpha=plain["alpha"]
        )
        model = f"{plain['module'].rpartition(':')[2]}, trained"
        rows.append(network_identity(model, plain["dataset"], seed, draw) | row)
    return pd.DataFrame(rows)


def network_identity(model: str, data: str, seed: int, draw: int) -> dict[str, Any]:
    """The columns by which ``evaluate`` tells networks apart, for one that has none of ours."""
    named = {"run": f"{model} {seed}-{draw}", "data": data, "model": model, "seed": seed, "draw": draw}
    return named | FOREIGN | {"converged": True}


def _doubled(points: Points) -> Points:
    return Points(*(part.double() for part in vars(points).values()))


def _attribution(plain: dict[str, Any], grams: list[Tensor], targets: Tensor) -> pd.DataFrame:
    """Of regression with the kernels of all seeds, at the largest size that leaves a third of the points."""
    if plain["num_seeds"] < 2:
        return pd.DataFrame()
    fitting = [size for size in plain["sizes"] if size <= len(targets) - len(targets) // 3]
    if not fitting:
        raise UserError(f"sizes={plain['sizes']} leave no third of {len(targets)} points for testing; pass more points")
    rows = []
    for ridge in plain["ridges"]:
        found = attribute_kernels(
            grams, targets, size=max(fitting), ridge=ridge, num_draws=plain["num_draws"], seed=plain["seed"]
        )
        rows += [
            {"who": f"P = {max(fitting)}, λ = {ridge:g}", "P": max(fitting), "ridge": ridge} | row for row in found
        ]
    return pd.DataFrame(rows)


def register() -> None:
    store = ConfigStore.instance()
    store.store("audit_schema", AuditConfig)
    store.store("data_schema", DataConfig, group="data")


register()
