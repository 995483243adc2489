"""What `make run` shows: a line for each alert, a running count, and the summary at the end."""

import math

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dataflow.demo.figures import Count, Figures
from dataflow.demo.tally import Alert, Tally
from dataflow.process.terminal import printable
from dataflow.settings import Settings

_STYLES = {"block": "bold white on red", "review": "bold red"}


def alert_line(alert: Alert) -> Text:
    """One line for an alert: what it asks for, how sure it is, who and what, and the first reason.

    Nothing that stands in a transaction is taken for markup or control characters.
    """
    why = alert.explanation[0].text if alert.explanation else " · ".join(alert.reason)
    line = (
        f" {alert.score:.2f}  {alert.timestamp[11:19]}  {alert.user[:14]:<14} {alert.amount:>9.2f}  "
        f"{alert.merchant[:18]:<18} {alert.location[:4]:<4} {why}"
    )
    return Text(f"{printable(alert.action).upper():<7}", style=_STYLES.get(alert.action, "bold")) + Text(
        printable(line), style="default"
    )


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie; nan without values."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def live_line(tally: Tally, settings: Settings) -> Text:
    """The running count: decisions, and how good they are."""
    figures = tally.figures
    invalid = tally.by_topic[settings.invalid_topic]
    caught, missed = figures.caught, figures.missed
    return Text(
        f"decided {tally.decided():,}   frauds {figures.frauds.number:,}: caught {caught.number:,}, missed "
        f"{missed.number:,}   false alarms {figures.false_alarms.number:,}   precision "
        f"{_share(figures.precision)}, recall {_share(figures.recall)}   money caught {caught.money:,.0f}, lost "
        f"{missed.money:,.0f}   {f'invalid {invalid:,}   ' if invalid else ''}latency p50 "
        f"{percentile(tally.latencies[-1000:], 0.5):.0f} ms",
        style="bold",
    )


def summary(tally: Tally, settings: Settings, generated: int) -> Table:
    """The table at the end: of live transactions only."""
    table = Table(title="Redflag: summary", title_justify="left", show_header=False)
    table.add_row("transactions generated", str(generated))
    table.add_row("transactions decided", str(tally.decided()))
    table.add_row(f"  to {settings.alerts_topic}", str(tally.by_topic[settings.alerts_topic]))
    table.add_row(f"  to {settings.classified_topic}", str(tally.by_topic[settings.classified_topic]))
    table.add_row(f"  to {settings.invalid_topic}", str(tally.by_topic[settings.invalid_topic]))
    if tally.refused_labels:
        table.add_row("labels refused", str(tally.refused_labels))
    _add_truth(table, tally.figures)
    for action in ("block", "review"):
        if tally.by_action[action]:
            table.add_row(f"alerts to {action}", str(tally.by_action[action]))
    for rule, count in tally.by_rule.most_common(12):
        table.add_row(f"alerts of rule {escape(rule)}", str(count))
    seconds = max(tally.last - tally.first, 1e-9)
    table.add_row("rate", f"{tally.decided() / seconds:.1f} decisions/s" if tally.decided() > 1 else "-")
    table.add_row("latency p50", f"{percentile(tally.latencies, 0.5):.1f} ms")
    table.add_row("latency p99", f"{percentile(tally.latencies, 0.99):.1f} ms")
    return table


def _add_truth(table: Table, figures: Figures) -> None:
    table.add_row("frauds", _money(figures.frauds))
    table.add_row("  caught", _money(figures.caught))
    table.add_row("  missed", _money(figures.missed))
    table.add_row("false alarms", str(figures.false_alarms.number))
    table.add_row("precision", _share(figures.precision))
    table.add_row("recall", _share(figures.recall))
    for name, scenario in sorted(figures.by_scenario.items()):
        caught, frauds = scenario.caught, scenario.frauds
        table.add_row(
            f"  {escape(name)}",
            f"{caught.number} of {frauds.number} caught, {caught.money:,.2f} of {frauds.money:,.2f}",
        )


def _money(count: Count) -> str:
    return f"{count.number}, worth {count.money:,.2f}" if count.number else "0"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.2f}"
