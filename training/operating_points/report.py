"""An operating point for people: its curve as a table of 80 columns, and as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dataflow.scoring.operating_point import CurvePoint, Interval, OperatingPoint

LINES = 9  # of the table, beside the head and the point that was chosen
_COLUMNS = ("threshold", "alerts a day", "precision", "recall", "money caught")
_WIDTHS = (10, 22, 14, 14, 14)


def told(point: OperatingPoint) -> str:
    """What the operating point promises, in a sentence."""
    parts = [f"from a risk of {point.alert:.4f} on ({point.chosen_by})"]
    if point.of_forest:
        parts = [f"on the forest's own verdict, from a risk of about {point.alert:.4f} on"]
    if point.expected is not None:
        parts.append(f": {_figures(point.expected)}")
    if point.block is not None:
        parts.append(f"; blocks from {point.block:.4f} on")
    return "".join(parts)


def _figures(point: CurvePoint) -> str:
    said = [f"{_count(point.alerts_a_day)} alerts a day"]
    if point.precision is not None:
        said.append(f"precision {_share(point.precision)}")
    if point.recall is not None:
        said.append(f"recall {_share(point.recall)}")
    return ", ".join(said)


def table(point: OperatingPoint) -> list[str]:
    """The curve in some `LINES` lines, the chosen point among them behind a ">"; empty without a curve."""
    if not point.curve:
        return []
    places = np.unique(np.linspace(0, len(point.curve) - 1, LINES).round().astype(int))
    shown = [(each, " ") for each in (point.curve[place] for place in places)]
    if point.expected is not None:
        shown = [(each, mark) for each, mark in shown if each.threshold != point.expected.threshold]
        shown.append((point.expected, ">"))
    shown.sort(key=lambda pair: -pair[0].threshold)
    columns = len(_COLUMNS) if any(each.recall is not None for each, _ in shown) else 2
    rows = [_COLUMNS[:columns], *(_cells(each, mark)[:columns] for each, mark in shown)]
    return ["".join(cell.rjust(width) for cell, width in zip(row, _WIDTHS, strict=False)) for row in rows]


def _cells(each: CurvePoint, mark: str) -> Sequence[str]:
    shares = (each.precision, each.recall, each.money_caught)
    return (f"{mark}{each.threshold:8.4f}", _count(each.alerts_a_day), *map(_share, shares))


def _count(interval: Interval) -> str:
    digits = 1 if interval.value < 100 else 0
    value, low, high = (f"{number:,.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low}-{high})"


def _share(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    value, low, high = (f"{100 * number:.0f}" for number in (interval.value, interval.low, interval.high))
    return f"{value}% ({low}-{high})"


def draw(axes: Any, point: OperatingPoint) -> None:
    """Draws the curve: precision and recall over alerts a day where labels are known, else these over the threshold."""
    curve = point.curve
    axes.set(xscale="log")
    if not any(each.recall is not None for each in curve):
        axes.plot([each.alerts_a_day.value for each in curve], [each.threshold for each in curve], color="#52606d")
        if point.expected is not None:
            axes.plot(point.expected.alerts_a_day.value, point.alert, "D", color="black", label="operating point")
            axes.legend(frameon=False)
        axes.set(xlabel="alerts a day, log scale", ylabel="threshold of the risk")
        return
    for name, color in (("precision", "#c0392b"), ("recall", "#2c7fb8"), ("money_caught", "#7f8c3d")):
        known = [(each.alerts_a_day.value, share) for each in curve if (share := getattr(each, name)) is not None]
        at = [alerts for alerts, _ in known]
        axes.plot(at, [share.value for _, share in known], color=color, label=name.replace("_", " "))
        axes.fill_between(
            at, [share.low for _, share in known], [share.high for _, share in known], color=color, alpha=0.15
        )
    if point.expected is not None:
        axes.axvline(point.expected.alerts_a_day.value, color="black", linestyle="--", label="operating point")
    axes.set(xlabel="alerts a day, log scale", ylabel="share, with its 95 % interval", ylim=(0, 1.02))
    axes.legend(frameon=False)
