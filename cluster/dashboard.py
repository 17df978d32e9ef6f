"""The wandb workspace of an experiment, as code: what the report says, for somebody who opens a browser.

Charts of the theory are drawn from the tables that the analysis logs (:mod:`ridgescope.analysis.wandb_view`); cost
and convergence from the summaries of the cells' runs.
"""

import json
from typing import Any, get_args

from ridgescope.analysis.wandb_view import KAPPA, LINKS, RISK, VERDICTS
from ridgescope.train.errors import UserError, first_line
from ridgescope.train.training import Status


def workspace(project: str, entity: str, group: str) -> Any:
    """A ``wandb_workspaces`` workspace that shows the runs of one experiment; nothing is sent."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'ridgescope[dashboard]'") from error

    def table(name: str, kind: str, **fields: str) -> Any:
        chart = wr.CustomChart.from_table(name, chart_fields=fields, chart_strings={"title": name})
        chart.chart_name = f"wandb/{kind}/v0"
        return chart

    steps: dict[str, Any] = {"x": wr.Metric("trainer/global_step"), "log_y": True}
    width = wr.Config("model.width")
    sections = {
        "Verdicts": [wr.WeavePanelSummaryTable(table_name=VERDICTS)],
        "Effective ridge: predicted (x) against measured": [table(KAPPA, "scatter", x="predicted", y="measured")],
        "Risk against width": [table(RISK, "line", x="width", y="risk", stroke="curve")],
        "The three links: relative deviation": [table(LINKS, "line", x="width", y="deviation", stroke="curve")],
        "Convergence": [
            wr.BarPlot(title="networks", metrics=[wr.SummaryMetric(f"cell/{flag}") for flag in get_args(Status)]),
            wr.LinePlot(title="largest optimality gap", y=[wr.Metric("train/optimality_gap")], **steps),
            wr.LinePlot(title="median loss", y=[wr.Metric("train/loss")], **steps),
        ],
        "Cost": [
            wr.ScatterPlot(title="seconds of a cell", x=width, y=wr.SummaryMetric("cell/seconds"), log_y=True),
            wr.BarPlot(title="seconds", metrics=[wr.SummaryMetric("cell/seconds")]),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Ridgescope: {group}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("Group") == group]),
    )


def serialised(view: Any) -> dict[str, Any]:
    """The workspace as wandb stores it."""
    return dict(json.loads(view._to_model().model_dump_json(by_alias=True)))


def save(project: str, entity: str | None, group: str) -> str:
    """Put the workspace into wandb; returns its address. Raises ``UserError`` without a key, a network or a project."""
    import wandb

    try:
        view = workspace(project, entity or wandb.Api(timeout=10).default_entity or "", group).save()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the dashboard cannot be saved ({first_line(error)}); it needs wandb login, a network, and a project that "
            "has runs"
        ) from error
    return str(view.url)
