"""The claims that a report judges: "measured equals predicted", with a tolerance that was set beforehand.

They are declared in ``conf/claims``, so that an experiment can bring its own; ``claims_from`` reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any, Literal, get_args

from omegaconf import OmegaConf

from ridgescope.train.errors import UserError

Test = Literal["equivalence", "mean", "at_most"]


@dataclass(kw_only=True)
class Claim:
    """``measured`` equals ``predicted`` within ``tolerance``; one entry of ``conf/claims``, under its key.

    label: what is divided by what, short enough for a table. sentence: the claim in words. what, against: both sides
    in words. if_fails: where to look then. link: the link of the chain that it tests.
    measured, predicted: a column of ``networks`` or an expression of columns, as ``DataFrame.eval`` reads it.
    test: ``equivalence`` (mean over cells, and rms so that opposite errors cannot cancel), ``mean`` (mean alone) or
    ``at_most`` (measured exceeds predicted by no more than the tolerance).
    required: where it fails, ``ridgescope analyse`` ends with exit status 3.
    selection: which networks the claim is about, as ``DataFrame.query`` reads it ('' is all of them).
    grouping: what distinguishes the cells of one setting; a claim grouped by width is also judged per width.
    factors: what independent repetitions differ in; kernels of infinite width know no initialisation seed.
    reason: column that says why a side is missing, where it is.
    infinite_width: judged on the table of infinite-width kernels, which has many more draws than any network.
    along_training: judged on the table of measured times; nothing is said where no trajectory was measured.
    """

    label: str
    sentence: str
    link: str
    measured: str
    predicted: str
    tolerance: float
    what: str = "the measured value"
    against: str = "the predicted one"
    if_fails: str = "the claim is wrong here, or one of its sides was measured wrongly"
    test: str = "equivalence"
    required: bool = False
    selection: str = ""
    grouping: list[str] = field(default_factory=lambda: ["width", "P", "ridge"])
    factors: list[str] = field(default_factory=lambda: ["draw", "seed"])
    reason: str = "undetermined"
    infinite_width: bool = False
    along_training: bool = False


def claims_from(entries: Mapping[str, dict[str, Any]]) -> dict[str, Claim]:
    """The claims of a plain mapping such as ``conf/claims/default.yaml``, checked. Raises ``UserError``."""
    known = [f.name for f in fields(Claim)]
    needed = ("label", "sentence", "link", "measured", "predicted", "tolerance")
    claims = {}
    for key, entry in entries.items():
        if unknown := sorted(set(entry) - set(known)):
            raise UserError(f"claims.{key} has no key {unknown[0]}; known: {', '.join(known)}")
        if missing := [name for name in needed if name not in entry]:
            raise UserError(f"claims.{key} lacks {', '.join(missing)}; a claim needs {', '.join(needed)}")
        claims[key] = claim = Claim(**(entry | {"tolerance": float(entry["tolerance"])}))
        if claim.test not in get_args(Test):
            raise UserError(f"claims.{key}.test={claim.test!r} is unknown; choose {', '.join(get_args(Test))}")
        if not 0 < claim.tolerance < 1:
            raise UserError(f"claims.{key}.tolerance={claim.tolerance} is a relative deviation; choose 0 < it < 1")
        if not claim.factors or not set(claim.factors) <= {"draw", "seed"}:
            raise UserError(f"claims.{key}.factors={claim.factors}; repetitions differ in [draw], [seed] or both")
    return claims


def packaged_claims(name: str) -> dict[str, Claim]:
    """The claims of ``conf/claims/NAME.yaml``."""
    text = resources.files("ridgescope.conf").joinpath(f"claims/{name}.yaml").read_text(encoding="utf-8")
    entries = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(entries, dict)
    return claims_from(entries)  # type: ignore[arg-type]


DEFAULT_CLAIMS = packaged_claims("default")
# The keys of the three links, in order. The finite-width law speaks for its link where the architecture has one; else
# the kernel is compared with infinite width.
CHAIN = (("theory",), ("blocks", "width"), ("lazy",))
