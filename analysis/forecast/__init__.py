"""Forecasts from a pilot: risk of more samples, other widths and ridges, with intervals, and what to buy."""

from ridgescope.analysis.forecast.grid import Forecast, forecast
from ridgescope.analysis.forecast.pilot import Pilot, PilotRisks, make_pilot
from ridgescope.analysis.forecast.spend import Cost, Machine, best_risk, cheapest, measured_cost

__all__ = [
    "Cost",
    "Forecast",
    "Machine",
    "Pilot",
    "PilotRisks",
    "best_risk",
    "cheapest",
    "forecast",
    "make_pilot",
    "measured_cost",
]
