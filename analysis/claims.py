"""The claims that a report judges: "measured equals predicted", with a tolerance that was set beforehand."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``measured`` equals ``predicted`` within ``tolerance``, cell by cell and on average.

    label: what is divided by what, short enough for a table. sentence: the claim in words.
    measured, predicted: a column of ``networks`` or an expression of columns, as ``DataFrame.eval`` reads it.
    selection: which networks the claim is about, as ``DataFrame.query`` reads it ('' is all of them).
    grouping: what distinguishes the cells of one setting; a claim grouped by width is also judged per width.
    factors: what independent repetitions differ in; kernels of infinite width know no initialisation seed.
    infinite_width: judged on the table of infinite-width kernels, which has many more draws than any network.
    """

    key: str
    label: str
    sentence: str
    link: str
    measured: str
    predicted: str
    tolerance: float
    selection: str = ""
    grouping: tuple[str, ...] = ("width", "P", "ridge")
    factors: tuple[str, ...] = ("draw", "seed")
    infinite_width: bool = False


THEORY_TO_KERNEL = "theory → infinite width"
INFINITE_TO_FINITE = "infinite → finite width"
KERNEL_TO_NETWORK = "kernel → network"
KERNEL_ALONE = "training kernel alone"
WHOLE_CHAIN = "theory → network"

DEFAULT_CLAIMS: tuple[Claim, ...] = (
    Claim(
        key="theory",
        label="infinite width / theory",
        sentence="Ridge theory predicts the test risk of the infinite-width kernel.",
        link=THEORY_TO_KERNEL,
        measured="infinite_heldout",
        predicted="theory_test",
        tolerance=0.04,
        grouping=("P", "ridge"),
        factors=("draw",),
        infinite_width=True,
    ),
    Claim(
        key="kappa",
        label="κ: infinite width / theory",
        sentence="Ridge theory predicts the effective ridge κ of the infinite-width kernel.",
        link=THEORY_TO_KERNEL,
        measured="kappa_infinite",
        predicted="theory_kappa",
        tolerance=0.05,
        grouping=("P", "ridge"),
        factors=("draw",),
        infinite_width=True,
    ),
    Claim(
        key="width",
        label="kernel / infinite width",
        sentence="The network's kernel at initialisation has the test risk of the infinite-width kernel.",
        link=INFINITE_TO_FINITE,
        measured="krr_test",
        predicted="infinite_test",
        tolerance=0.05,
    ),
    Claim(
        key="width_theory",
        label="width effect: kernel / theory",
        sentence="One effective width N_eff predicts how finite width changes the test risk.",
        link=INFINITE_TO_FINITE,
        measured="krr_test / infinite_test",
        predicted="theory_width_test / theory_test",
        tolerance=0.05,
    ),
    Claim(
        key="lazy",
        label="network / kernel at init.",
        sentence="The trained network has the test risk of its kernel at initialisation.",
        link=KERNEL_TO_NETWORK,
        measured="network_test",
        predicted="krr_test",
        tolerance=0.01,
    ),
    Claim(
        key="after",
        label="network / kernel after training",
        sentence="The trained network has the test risk of its kernel after training.",
        link=KERNEL_TO_NETWORK,
        measured="network_test",
        predicted="krr_final_test",
        tolerance=0.02,
    ),
    Claim(
        key="kappa_network",
        label="κ: network / kernel",
        sentence="The train/test risk ratio of the trained network shows the κ of its kernel.",
        link=KERNEL_TO_NETWORK,
        measured="kappa_risk",
        predicted="kappa_entk",
        tolerance=0.10,
        selection="ridge > 0",
    ),
    Claim(
        key="gcv",
        label="kernel / GCV",
        sentence="Generalised cross-validation on the training kernel alone gives the kernel's test risk.",
        link=KERNEL_ALONE,
        measured="krr_test",
        predicted="entk_gcv",
        tolerance=0.05,
    ),
    Claim(
        key="loo",
        label="kernel / leave-one-out",
        sentence="Leave-one-out on the training kernel alone gives the kernel's test risk.",
        link=KERNEL_ALONE,
        measured="krr_test",
        predicted="entk_loo",
        tolerance=0.05,
    ),
    Claim(
        key="end_to_end",
        label="network / theory",
        sentence="Ridge theory at infinite width predicts the test risk of the trained network.",
        link=WHOLE_CHAIN,
        measured="network_test",
        predicted="theory_test",
        tolerance=0.05,
    ),
)

CHAIN = ("theory", "width", "lazy")  # the keys of the three links, in order
