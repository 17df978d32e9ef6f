"""The audit: routes agree on Gaussian points, disagree for the planted reason elsewhere, and never guess."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ridgescope.analysis.audit import ELLIPTICAL, GAUSSIAN, ROUTES, KernelAudit, audit_kernel
from ridgescope.analysis.claims import packaged_claims
from ridgescope.analysis.faults import kernel_findings, repeated_points
from ridgescope.analysis.joint import joint_test, kappa_table
from ridgescope.analysis.verdict import evaluate
from ridgescope.models import MLP, infinite_ntk
from ridgescope.train.data import prepare_data
from ridgescope.train.errors import UserError


def digits_kernel(points: int, unit_norm: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    data = prepare_data("digits", train_size=1, pool_size=points, test_size=1, num_draws=1, unit_norm=unit_norm)
    network = MLP(data.in_shape, 10, width=8, depth=2, generator=torch.Generator().manual_seed(0))
    gram = infinite_ntk(network, data.pool_inputs / data.pool_inputs.square().mean().sqrt()).ntk
    return gram / gram.diagonal().mean(), data.pool_targets


@pytest.fixture(scope="module")
def raw() -> KernelAudit:
    """Digits with their own norms: unequal points, so the routes differ."""
    return audit_kernel(*digits_kernel(400, unit_norm=False), sizes=[100], ridges=[1e-2, 1e-5], num_draws=8)


def test_every_route_is_measured_for_the_data_and_both_controls(raw: KernelAudit) -> None:
    assert list(dict.fromkeys(raw.table["model"])) == ["data", GAUSSIAN, ELLIPTICAL]
    assert len(raw.table) == 3 * 2 * 8
    for route in ROUTES:
        assert bool((raw.table[f"kappa_{route}"] > 0).all()), route
        assert bool((raw.table[f"kappa_{route}_se_log"] > 0).all()), route


def test_uneven_points_are_told_from_arithmetic_by_the_controls(raw: KernelAudit) -> None:
    table = kappa_table(raw.table).set_index(["model", "ridge"])
    small = {model: table.loc[model, 1e-5] for model in ("data", GAUSSIAN, ELLIPTICAL)}
    for route in ("resolvent", "left_out"):
        assert abs(small[GAUSSIAN][route]) < 0.015
    assert small["data"]["resolvent"] < -0.04  # what the trace of the resolvent misses
    assert small[ELLIPTICAL]["resolvent"] < -0.02  # and unequal norms alone do part of that
    assert abs(small["data"]["left_out"]) < 0.03
    assert abs(small["data"]["risk_deviation"]) < 0.06  # while the risk is right
    assert small["data"]["gcv"] < small["data"]["loo_risk"] - 0.05


def test_claims_name_the_link_and_the_finding_says_why(raw: KernelAudit) -> None:
    claims = packaged_claims("audit")
    claims["uneven"].tolerance = 0.02
    verdicts = evaluate(raw.table, claims).set_index(["model", "claim"])["verdict"]
    assert verdicts["data", "uneven"] == "fails"
    assert verdicts[GAUSSIAN, "uneven"] == verdicts[GAUSSIAN, "spectrum"] == "holds"
    gram, _ = digits_kernel(400, unit_norm=False)
    (finding,) = kernel_findings(raw.table, gram, "data")
    assert finding.link == "points alike"
    assert "unequal norms alone give -" in finding.sentence


def test_repeated_inputs_turn_the_verdict_and_are_counted() -> None:
    """A planted fault: 100 of 300 points are copies of the others."""
    gram, targets = digits_kernel(300)
    index = torch.cat([torch.arange(200), torch.arange(100)])
    clean, doubled = (
        audit_kernel(gram[i][:, i], targets[i], sizes=[120], ridges=[1e-3], num_draws=8, controls=False).table
        for i in (torch.arange(300), index)
    )
    ratio = [float((t["kappa_resolvent"] / t["kappa_left_out"]).mean()) for t in (clean, doubled)]
    assert ratio[0] > 0.95  # within the tolerance of the claim
    assert ratio[1] < 0.9
    assert repeated_points(gram) == 0
    assert repeated_points(gram[index][:, index]) == 200
    finding = kernel_findings(doubled, gram[index][:, index], "data")[0]
    assert (finding.link, finding.sentence[:10]) == ("inputs", "200 of 300")


def test_the_joint_test_is_hotellings() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(9, 4))  # resolvent, and the others over it
    rows = pd.DataFrame({"kappa_spectrum": np.ones(9), "P": 1, "points": 10**9})
    rows["kappa_resolvent"] = np.exp(one[:, 0])
    for route, values in zip(("left_out", "loo", "ratio"), one[:, 1:].T, strict=True):
        rows[f"kappa_{route}"] = rows["kappa_resolvent"] * np.exp(values)
    mean, covariance = one.mean(0), np.cov(one.T)
    mean[3] = 0.0  # all training sets are tested on the same points: without more of these nothing is known
    f = 9 * mean @ np.linalg.inv(covariance) @ mean * (9 - 4) / (4 * 8)
    assert joint_test(rows).p_value == pytest.approx(stats.f.sf(f, 4, 5), rel=1e-4)
    assert joint_test(rows[:5]).note == "5 draws; 4 differences need 6"


def test_a_ridge_that_the_certificate_refuses_is_undetermined_and_never_a_number() -> None:
    gram, targets = digits_kernel(100)
    index = torch.cat([torch.arange(70), torch.arange(30)])  # copies: the smallest eigenvalue is the ridge
    single = audit_kernel(
        gram.float().double()[index][:, index], targets[index], sizes=[60], ridges=[1e-2, 1e-8], num_draws=3,
        controls=False, precision=torch.float32,
    )  # fmt: skip
    small = single.table[single.table["ridge"] == 1e-8]
    assert bool(small[[f"kappa_{route}" for route in ROUTES]].isna().all(axis=None))
    assert bool(single.table[single.table["ridge"] == 1e-2]["kappa_resolvent"].notna().all())
    (note,) = single.notes
    assert note.startswith(
        "data: ridge=1e-08 at P=60 is undetermined: the kernel cannot carry ridge=1e-08: float32 knows"
    )
    verdicts = evaluate(small, packaged_claims("audit"))
    assert set(verdicts["verdict"]) == {"undetermined"}
    assert all("cannot carry ridge=1e-08" in words for words in verdicts["explanation"])


def test_bad_input_is_one_line() -> None:
    gram, targets = digits_kernel(60)
    good = {"sizes": [30], "ridges": [1e-2], "num_draws": 3}
    for change, message in (
        ({"sizes": [55]}, r"sizes=\[55\] must lie between 10 and 50"),
        ({"num_draws": 2}, "num_draws=2 gives no error bar"),
        ({"ridges": [0.0]}, "must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            audit_kernel(gram, targets, **(good | change))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="do not vary"):
        audit_kernel(gram, torch.ones_like(targets), **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one row for each of the 60"):
        audit_kernel(gram, targets[:9], **good)  # type: ignore[arg-type]
