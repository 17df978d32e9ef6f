"""The report of a validation: one self-contained page, figures for a paper, tables, and a terminal table."""

from ridgescope.analysis.report.page import write_report
from ridgescope.analysis.report.terminal import print_verdicts

__all__ = ["print_verdicts", "write_report"]
