"""The report: complete, self-contained, readable in a pipe, and whole at every moment."""

import io
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ridgescope.analysis.cells import cells
from ridgescope.analysis.drawing import figure_bytes
from ridgescope.analysis.figures import kappa_parts_figure, links_figure
from ridgescope.analysis.report import page as page_module
from ridgescope.analysis.report import print_verdicts, write_report
from ridgescope.analysis.report.text import DASH, interval, number, percent, rms_range
from ridgescope.analysis.verdict import evaluate

VOID = {"meta", "link", "br", "img", "hr", "input"}
NEEDS_INFINITE_WIDTH = (
    "infinite_test",
    "infinite_heldout",
    "theory_test",
    "theory_train",
    "theory_kappa",
    "theory_width_test",
    "theory_width_kappa1",
    "kappa_infinite",
    "inverse_width",
    "block_test",
    "block_kappa1",
    "block_pool_test",
)
FIGURES = ("kappa", "kappa_parts", "kappa_width", "links", "risk_size", "risk_width", "spectrum", "train_test")


class Page(HTMLParser):
    """What a browser would see: visible text, ids, link targets; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"closes {tag}, nothing is open"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def written(planted, spectra, tmp_path_factory):
    """One report with a broken link, a diverged network, and a run name that HTML and URLs must escape."""
    networks = planted(0, widths=(16, 64), num_seeds=3, num_draws=3, law_off=0.4)
    networks.loc[3, ["converged", "status", "network_test"]] = [False, "diverged", np.nan]
    networks.loc[5, "run"] = 'odd "name" & <b>50%</b>'
    out = tmp_path_factory.mktemp("report")
    page = write_report(
        networks,
        spectra(),
        {
            "title": "Planted <truth>",
            "created": "today",
            "versions": {"torch": "2.11"},
            "rule_parameters": [1, 2],
        },
        out,
    )
    return networks, out, page


def test_writes_every_file_and_leaves_no_temporary_one(written):
    _, out, page = written
    assert page == out / "index.html"
    tables = {
        "networks.parquet",
        "cells.parquet",
        "verdicts.parquet",
        "verdicts.csv",
        "regimes.parquet",
        "index.html",
        "figures",
    }
    assert {path.name for path in out.iterdir()} == tables
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert drawn == {f"mlp_{name}.{kind}" for name in (*FIGURES, "regimes") for kind in ("svg", "pdf")}


def test_page_asks_the_network_for_nothing(written):
    html = written[2].read_text()
    assert "http" not in html
    assert "<script" not in html
    assert not re.search(r"@import|url\((?!#)", html)
    local = [address for address in Page(html).addresses if not address.startswith(("#", "data:"))]
    assert local
    assert all((written[1] / address).is_file() for address in local)


def test_every_link_within_the_page_has_its_target_and_ids_are_unique(written):
    seen = Page(written[2].read_text())
    assert len(seen.ids) == len(set(seen.ids))
    targets = {unquote(address[1:]) for address in seen.addresses if address.startswith("#")}
    assert targets <= set(seen.ids)


def test_every_run_can_be_found_from_its_cell(written):
    networks, _, page = written
    seen = Page(page.read_text())
    text = "".join(seen.text)
    assert all(f"run-{run}" in seen.ids for run in networks["run"])
    assert all(text.count(run) >= 2 for run in networks["run"])


def test_title_and_run_names_are_escaped(written):
    html = written[2].read_text()
    assert "<title>Planted &lt;truth&gt;</title>" in html
    assert "<b>50%</b>" not in html


def test_answer_names_the_broken_link_and_the_diverged_network(written):
    networks, _, page = written
    text = " ".join("".join(Page(page.read_text()).text).split())
    assert "the chain breaks at infinite → finite width" in text
    assert "1 of 72 networks did not converge" in text
    assert f"{networks.loc[3, 'run']}, member {networks.loc[3, 'member']}" in text
    assert "diverged" in text
    assert "torch: 2.11" in text


def test_page_never_shows_nan(written):
    text = "".join(Page(written[2].read_text()).text)
    assert not re.search(r"\b(nan|NaN|inf|None)\b", text)


def test_tables_on_disk_hold_what_the_page_was_made_from(written):
    networks, out, _ = written
    pd.testing.assert_frame_equal(pd.read_parquet(out / "networks.parquet"), networks)
    verdicts = evaluate(networks)
    stored = pd.read_parquet(out / "verdicts.parquet")
    pd.testing.assert_frame_equal(stored.drop(columns="runs"), verdicts.drop(columns="runs"))
    assert [list(runs) for runs in stored["runs"]] == list(verdicts["runs"])
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "verdicts.csv", keep_default_na=False, na_values=[""])[["claim", "verdict", "deviation"]],
        verdicts[["claim", "verdict", "deviation"]],
    )


def test_a_crash_while_writing_keeps_the_old_page(written, planted, spectra, monkeypatch):
    _, out, _ = written
    before = {path: path.read_bytes() for path in out.glob("*.*")}

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(page_module.Path, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        write_report(planted(1, widths=(16,), num_seeds=2, num_draws=2), spectra(), {}, out)
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(
    ("options", "change", "without"),
    [
        pytest.param(
            {"widths": (32,), "sizes": (100,), "ridges": (0.0,)},
            {"kappa_risk": np.nan},
            ["train_test"],
            id="one ridgeless cell",
        ),
        pytest.param(
            {"widths": (8, 16), "sizes": (100,)},
            dict.fromkeys(NEEDS_INFINITE_WIDTH, np.nan),
            ["kappa_parts", "kappa_width"],
            id="no infinite-width kernel",
        ),
        pytest.param(
            {"widths": (16,), "sizes": (100,)},
            {"converged": False, "network_test": np.nan},
            ["train_test"],
            id="none converged",
        ),
    ],
)
def test_what_is_missing_is_left_out_without_a_word_of_complaint(planted, tmp_path, options, change, without):
    networks = planted(2, num_seeds=2, num_draws=2, **options).assign(**change)
    no_spectra = pd.DataFrame(columns=["data", "model", "index", "eigenvalue", "target_power", "kernel"])
    html = write_report(networks, no_spectra, {}, tmp_path).read_text()
    assert not re.search(r"\b(nan|NaN|inf)\b", "".join(Page(html).text))
    drawn = {path.stem.removeprefix("mlp_") for path in (tmp_path / "figures").iterdir()} - {"regimes"}
    assert drawn == set(FIGURES) - {"spectrum"} - set(without)


def test_the_same_table_gives_the_same_bytes(planted):
    verdicts = evaluate(planted(3, num_seeds=2, num_draws=2))
    for kind in ("svg", "pdf"):
        assert figure_bytes(links_figure(verdicts), kind) == figure_bytes(links_figure(verdicts), kind)


def test_text_in_figures_can_be_searched(planted):
    svg = figure_bytes(kappa_parts_figure(cells(planted(4, num_seeds=2, num_draws=2))), "svg").decode()
    assert "finite data, P" in svg
    assert "<text" in svg


def test_an_unknown_figure_format_says_which_exist(planted):
    with pytest.raises(ValueError, match="'png'; use 'svg' or 'pdf'"):
        figure_bytes(links_figure(evaluate(planted(5, num_seeds=2, num_draws=2))), "png")


class TestTerminal:
    def printed(self, networks, encoding="utf-8", width=80):
        buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        print_verdicts(evaluate(networks), Console(file=buffer, width=width, highlight=False))
        buffer.seek(0)
        return buffer.read()

    def test_fits_eighty_columns_and_loses_no_verdict(self, planted):
        networks = planted(6, law_off=0.4)
        text = self.printed(networks)
        assert max(map(len, text.splitlines())) <= 80
        verdicts = evaluate(networks)
        table = text[: text.index("the chain breaks")]
        for word, count in verdicts["verdict"].value_counts().items():
            assert len(re.findall(rf"\b{word}\s*$", table, flags=re.MULTILINE)) == count
        assert "…" not in text

    def test_piped_output_bears_no_colour_codes(self, planted):
        assert "\x1b" not in self.printed(planted(7))

    def test_an_ascii_log_gets_ascii(self, planted):
        text = self.printed(planted(8, width_excess=0.4), encoding="ascii")
        assert "kappa of the infinite-width kernel" in text
        assert "+-" in text

    def test_missing_numbers_are_dashes_with_their_reason(self, planted):
        networks = planted(9).assign(infinite_test=np.nan)
        text = self.printed(networks)
        assert "all: not available" in text
        assert not re.search(r"\bnan\b", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.47, "0.470"),
        (1.0, "1.00"),
        (123.4, "123"),
        (45678.0, "45678"),
        (2.4e-5, "2.40e-5"),
        (0.0, "0"),
        (-0.0123, "-0.0123"),
        (np.nan, DASH),
        (np.inf, DASH),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_percentages_bear_a_sign_except_zero():
    assert percent(0.0123) == "+1.2 %"
    assert percent(-0.0123) == "\N{MINUS SIGN}1.2 %"
    assert percent(-0.0001) == "0.0 %"
    assert percent(np.nan) == DASH


def test_intervals_show_a_second_decimal_where_one_would_show_nothing():
    assert interval(0.010, 0.014, 0.012) == "+1.2 ± 0.2 %"
    assert interval(0.0119, 0.0121, 0.012) == "+1.20 ± 0.01 %"
    assert interval(np.nan, np.nan, 0.012) == "+1.2 %"
    assert rms_range(0.012, 0.004, 0.02) == "1.2 (0.4 to 2.0) %"
    assert rms_range(0.012, np.nan, np.nan) == "1.2 %"
