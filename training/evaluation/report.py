"""The evaluation as a page: one file, nothing loaded from anywhere, everything escaped."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.measures import Measures
from training.operating_points.operating_points import wilson

Run = tuple[dict[str, Measures], str, int]  # measures of each tier, week, seed

DECIDED = ("alerts", "alerts_a_day", "precision", "recall", "false_positive_rate")
MONEY = ("money_caught_a_day", "money_missed_a_day", "money_caught")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2933 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .75rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f5f7fa }
img { max-width: 100% } h2 { margin-top: 2.5rem }
"""


def write_report(path: Path, metrics: dict[str, Any], runs: Sequence[Run]) -> None:
    """Writes the page: the tiers side by side, curves, calibration, scenarios, what matters, each run."""
    measures = runs[0][0]
    figures = (
        *("average_precision", "roc_auc", "card_precision_100", "isotonic_deviation"),
        *("recall_at_0.001", "recall_at_0.005", "recall_at_0.01", "recall_at_0.05"),
        *("alerts_a_day", "users_caught", "days_to_detect"),
    )
    parts = [
        f"<h1>Redflag on {_text(metrics['history'])}</h1>",
        f"<p>Tested from {_text(metrics['test_from'])} to {_text(metrics['test_until'])} in {metrics['weeks']} "
        "windows, each with a model trained on the time before it; labels come "
        f"{metrics['label_delay_days']:g} days after their transactions; seeds {_text(metrics['seeds'])}. "
        "Mean ± standard deviation over windows and seeds.</p>",
        "<h2>The tiers side by side</h2>",
        _table(
            ("figure", *metrics["tiers"]),
            [(name, *(_spread(tier[name]) for tier in metrics["tiers"].values())) for name in figures],
        ),
        "<p>card_precision_100 is the handbook's card precision top 100; isotonic_deviation says how far precision is "
        "from rising with the score; recall_at_x is at a false positive rate of x; "
        "alerts a day, users caught and days to detect are at 1 % false positives.</p>",
        *_decisions(metrics["decisions"]),
        "<h2>Precision and recall; ROC</h2>",
        _picture(_curves(measures)),
        "<h2>Calibration</h2>",
        _picture(_calibrations(measures)),
        "<h3>Of the last tier, over all labelled transactions of the windows</h3>",
        f"<p>Expected calibration error: {metrics['decisions']['calibration']['calibration_error']:.4f} in ten bins of "
        f"equal width, {metrics['decisions']['calibration']['calibration_error_equal_counts']:.4f} in ten of equal "
        "counts; the bars are 95 % intervals (Wilson).</p>",
        _picture(_reliability(metrics["decisions"]["calibration"])),
        "<h2>By scenario</h2>",
    ]
    for tier, scenarios in metrics["by_scenario"].items():
        if scenarios:
            names = ("frauds", "recall", "users_caught", "days_to_detect")
            parts.append(f"<h3>{_text(tier)}</h3>")
            parts.append(
                _table(
                    ("scenario", *names), [(kind, *(_number(row[n]) for n in names)) for kind, row in scenarios.items()]
                )
            )
    if metrics["importance"]:
        parts.append("<h2>Which features matter to the supervised tier</h2>")
        parts.append(_table(("feature", "importance"), [(k, _number(v)) for k, v in metrics["importance"].items()]))
    parts.append("<h2>Each window and seed</h2>")
    shown = ("average_precision", "roc_auc", "card_precision_100")
    parts.append(
        _table(
            ("window", "seed", "tier", *shown),
            [(run["week"], run["seed"], run["tier"], *(_number(run[n]) for n in shown)) for run in metrics["runs"]],
        )
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Redflag: evaluation</title><style>{STYLE}</style>'
    )
    path.write_text(page + "\n".join(parts) + "</html>\n")


def _decisions(decisions: dict[str, Any]) -> list[str]:
    """What was decided at the operating point: in all, what was promised and what came, by rule, by scenario."""
    columns = (*DECIDED, *MONEY)
    kinds = ("rules_alone", "model_alone", "all", "blocked")
    weeks = [
        (
            week["week"],
            _number(week["alert_threshold"]),
            *(
                cell
                for name in ("alerts_a_day", "precision", "recall", "money_caught")
                for cell in (_interval(week["promised"].get(name)), _number(week["came"][name]))
            ),
        )
        for week in decisions["weeks"]
    ]
    parts = [
        "<h2>Decisions</h2>",
        f"<p>With rules {_text(decisions['ruleset_version'])} and the models of the first seed, at the operating point "
        f"{_text(decisions['chosen_by'])}; of all labelled transactions of the windows, those of known cards too. "
        "“all” is what would go to fraud_alerts, by the rules or the model.</p>",
        _table(("alerts of", *columns), [(kind, *(_number(decisions[kind][n]) for n in columns)) for kind in kinds]),
        *(f"<p>{_text(note)}</p>" for note in decisions["notes"]),
        "<h3>Promised, with 95 % intervals, and what came</h3>",
        _table(
            (
                "window from",
                "threshold",
                "alerts a day",
                "came",
                "precision",
                "came",
                "recall",
                "came",
                "money",
                "came",
            ),
            weeks,
        ),
        "<h3>By rule</h3><p>The rule of the model is one among them. A transaction may be the alert of several.</p>",
        _table(
            ("rule", *columns),
            [(name, *(_number(row[n]) for n in columns)) for name, row in decisions["by_rule"].items()],
        ),
    ]
    scenarios = decisions["by_scenario"]
    if scenarios:
        names = list(next(iter(scenarios.values())))
        parts += [
            "<h3>By scenario</h3>",
            _table(("scenario", *names), [(k, *(_number(row[n]) for n in names)) for k, row in scenarios.items()]),
        ]
    return parts


def _curves(measures: dict[str, Measures]) -> Any:
    figure, (left, right) = _figure(2)
    for tier, each in measures.items():
        left.plot(*zip(*each.precision_recall, strict=True), label=tier)
        right.plot(*zip(*each.roc, strict=True), label=tier)
    left.set(xlabel="recall", ylabel="precision")
    right.set(xlabel="false positive rate", ylabel="recall", xscale="log", xlim=(1e-4, 1))
    left.legend(frameon=False)
    return figure


def _calibrations(measures: dict[str, Measures]) -> Any:
    figure, (axes,) = _figure(1)
    axes.plot((0, 1), (0, 1), color="#9aa5b1", linestyle="--")
    for tier, each in measures.items():
        axes.plot(
            [c.mean_score for c in each.calibration], [c.fraud_share for c in each.calibration], marker="o", label=tier
        )
    axes.set(xlabel="mean score", ylabel="share of fraud")
    axes.legend(frameon=False)
    return figure


def _reliability(calibration: dict[str, Any]) -> Any:
    """Share of fraud over mean score: in bins of equal width, and, on log scales, of equal counts."""
    figure, axes = _figure(2)
    for each, name in zip(axes, ("equal_widths", "equal_counts"), strict=True):
        each.plot((1e-5, 1), (1e-5, 1), color="#9aa5b1", linestyle="--")
        for part in calibration[name]:
            share = wilson(part["fraud_share"] * part["size"], part["size"])
            if share is not None:
                each.plot((part["mean_score"],) * 2, (share.low, share.high), color="#9aa5b1")
        points = [(part["mean_score"], part["fraud_share"]) for part in calibration[name]]
        each.plot(*zip(*points, strict=True), "o", color="#c0392b")
        each.set(xlabel=f"mean score, ten bins of {name.replace('_', ' ')}", ylabel="share of fraud")
    axes[1].set(xscale="log", yscale="log")
    return figure


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _spread(figure: dict[str, float]) -> str:
    return f"{_number(figure['mean'])} ± {_number(figure['std'])}"


def _interval(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    return f"{_number(interval['value'])} ({_number(interval['low'])} to {_number(interval['high'])})"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _text(value: Any) -> str:
    return html.escape(str(value))
