"""The evaluation as a page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.measures import Measures
from training.html_page import Html, heading, page, paragraph, picture, table
from training.operating_points.operating_points import wilson
from training.plots import drawing, png

Run = tuple[dict[str, Measures], str, int]  # measures of each tier, week, seed

DECIDED = ("alerts", "alerts_a_day", "precision", "recall", "false_positive_rate")
MONEY = ("money_caught_a_day", "money_missed_a_day", "money_caught")


def write_report(path: Path, metrics: dict[str, Any], runs: Sequence[Run]) -> None:
    """Writes the page: the tiers side by side, curves, calibration, scenarios, what matters, each run."""
    measures = runs[0][0]
    figures = (
        *("average_precision", "roc_auc", "card_precision_100", "isotonic_deviation"),
        *("recall_at_0.001", "recall_at_0.005", "recall_at_0.01", "recall_at_0.05"),
        *("alerts_a_day", "users_caught", "days_to_detect"),
    )
    calibration = metrics["decisions"]["calibration"]
    parts = [
        paragraph(
            f"Tested from {metrics['test_from']} to {metrics['test_until']} in {metrics['weeks']} windows, each with a "
            "model trained on the time before it; labels come "
            f"{metrics['label_delay_days']:g} days after their transactions; seeds {metrics['seeds']}. "
            "Mean ± standard deviation over windows and seeds."
        ),
        heading("The tiers side by side"),
        table(
            ("figure", *metrics["tiers"]),
            [(name, *(_spread(tier[name]) for tier in metrics["tiers"].values())) for name in figures],
        ),
        paragraph(
            "card_precision_100 is the handbook's card precision top 100; isotonic_deviation says how far precision is "
            "from rising with the score; recall_at_x is at a false positive rate of x; "
            "alerts a day, users caught and days to detect are at 1 % false positives."
        ),
        *_decisions(metrics["decisions"]),
        *_drawn("Precision and recall; ROC", _curves(measures)),
        *_drawn("Calibration", _calibrations(measures)),
        paragraph(
            "Of the last tier, over all labelled transactions of the windows, the expected calibration error is "
            f"{calibration['calibration_error']:.4f} in ten bins of equal width, "
            f"{calibration['calibration_error_equal_counts']:.4f} in ten of equal counts; the bars are 95 % intervals "
            "(Wilson)."
        ),
        picture(png(_reliability(calibration)), "Calibration of the last tier"),
        heading("By scenario"),
    ]
    for tier, scenarios in metrics["by_scenario"].items():
        if scenarios:
            names = ("frauds", "recall", "users_caught", "days_to_detect")
            rows = [(kind, *(_number(row[n]) for n in names)) for kind, row in scenarios.items()]
            parts += [heading(tier, 3), table(("scenario", *names), rows)]
    if metrics["importance"]:
        rows = [(name, _number(share)) for name, share in metrics["importance"].items()]
        parts += [heading("Which features matter to the supervised tier"), table(("feature", "importance"), rows)]
    shown = ("average_precision", "roc_auc", "card_precision_100")
    rows = [(run["week"], run["seed"], run["tier"], *(_number(run[n]) for n in shown)) for run in metrics["runs"]]
    parts += [heading("Each window and seed"), table(("window", "seed", "tier", *shown), rows, text=(0, 2))]
    path.write_text(page(f"Redflag on {metrics['history']}", parts), encoding="utf-8")


def _decisions(decisions: dict[str, Any]) -> list[Html]:
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
    promised = ("threshold", "alerts a day", "came", "precision", "came", "recall", "came", "money", "came")
    parts = [
        heading("Decisions"),
        paragraph(
            f"With rules {decisions['ruleset_version']} and the models of the first seed, at the operating point "
            f"{decisions['chosen_by']}; of all labelled transactions of the windows, those of known cards too. "
            "“all” is what would go to fraud_alerts, by the rules or the model."
        ),
        table(("alerts of", *columns), [(kind, *(_number(decisions[kind][n]) for n in columns)) for kind in kinds]),
        *(paragraph(note) for note in decisions["notes"]),
        heading("Promised, with 95 % intervals, and what came", 3),
        table(("window from", *promised), weeks),
        heading("By rule", 3),
        paragraph("The rule of the model is one among them. A transaction may be the alert of several."),
        table(
            ("rule", *columns), [(k, *(_number(row[n]) for n in columns)) for k, row in decisions["by_rule"].items()]
        ),
    ]
    scenarios = decisions["by_scenario"]
    if scenarios:
        names = list(next(iter(scenarios.values())))
        rows = [(kind, *(_number(row[n]) for n in names)) for kind, row in scenarios.items()]
        parts += [heading("By scenario", 3), table(("scenario", *names), rows)]
    return parts


def _drawn(title: str, figure: Any) -> list[Html]:
    return [heading(title), picture(png(figure), title)]


def _curves(measures: dict[str, Measures]) -> Any:
    figure, (left, right) = drawing(11, 4, columns=2)
    for tier, each in measures.items():
        left.plot(*zip(*each.precision_recall, strict=True), label=tier)
        right.plot(*zip(*each.roc, strict=True), label=tier)
    left.set(xlabel="recall", ylabel="precision")
    right.set(xlabel="false positive rate", ylabel="recall", xscale="log", xlim=(1e-4, 1))
    left.legend(frameon=False)
    return figure


def _calibrations(measures: dict[str, Measures]) -> Any:
    figure, axes = drawing(5.5, 4)
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
    figure, axes = drawing(11, 4, columns=2)
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
