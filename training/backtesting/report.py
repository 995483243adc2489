"""What a backtest found: compared, as tables in the terminal, and as one HTML page with plots."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflow.process.terminal import printable
from dataflow.rules import Rule, RuleSet
from dataflow.scoring.operating_point import Interval
from training.backtesting.run import DECIDERS, Caught, Confusion, Tally, date_of
from training.html_page import Html, heading, page, paragraph, picture, table
from training.plots import drawing, png

EXAMPLES = 10  # of what a ruleset adds, and of what it drops
_PER_COMBINATION = 4  # of them of the same rules, so that they differ
_PAIRS = 10
OLD, NEW, GREY = "#9aa5b1", "#c0392b", "#52606d"


class Side(NamedTuple):
    """One ruleset, and what it decided."""

    name: str
    rules: RuleSet
    tally: Tally
    spool: Path


class Alert(msgspec.Struct):
    """An alert as an example."""

    transaction_id: str
    timestamp: str
    user: str
    amount: float
    merchant: str
    location: str
    score: float
    reason: list[str]
    rules: list[str]


class Found(NamedTuple):
    """Alerts of one side only."""

    all: Confusion
    by_rule: dict[str, Confusion]
    examples: list[tuple[Alert, bool | None]]  # with the truth


class Difference(NamedTuple):
    """What the new ruleset adds to the old one's alerts, what it drops, and how many both make."""

    added: Found
    dropped: Found
    kept: int


class Report(NamedTuple):
    """All that a backtest found."""

    source: str
    seconds: float
    new: Side
    old: Side | None
    difference: Difference | None


def compare(new: Side, old: Side) -> Difference:
    """Which alerts each side makes and the other does not."""
    ours, theirs = np.array(new.tally.keys, np.int64), np.array(old.tally.keys, np.int64)
    added, dropped = ~np.isin(ours, theirs), ~np.isin(theirs, ours)
    return Difference(_found(new, added), _found(old, dropped), int(len(ours) - added.sum()))


def _found(side: Side, chosen: "np.typing.NDArray[np.bool_]") -> Found:
    decode = msgspec.json.Decoder(Alert).decode
    whole = Confusion()
    by_rule: dict[str, Confusion] = {}
    seen: dict[tuple[str, ...], int] = {}
    examples: list[tuple[Alert, bool | None]] = []
    with side.spool.open("rb") as spool:
        for index in np.flatnonzero(chosen).tolist():
            spool.seek(side.tally.places[index])
            alert = decode(spool.readline())
            known = side.tally.truths[index]
            truth = None if known < 0 else bool(known)
            whole.add(truth)
            for rule in alert.rules:
                by_rule.setdefault(rule, Confusion()).add(truth)
            combination = tuple(alert.rules)
            seen[combination] = seen.get(combination, 0) + 1
            if seen[combination] <= _PER_COMBINATION and len(examples) < EXAMPLES:
                examples.append((alert, truth))
    return Found(whole, by_rule, examples)


class Grid(NamedTuple):
    """A table, for the terminal and for the page alike; cells are plain text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})  # columns of text; the others are numbers
    wraps: frozenset[int] = frozenset({0})  # columns that a terminal may break into lines, so that 80 columns hold all


def grids(report: Report) -> Iterator[Grid]:
    """The tables of a report, in their order."""
    yield _overview(report)
    for side in [report.new] if report.old is None else [report.old, report.new]:
        yield from _decisions(side, named=report.old is not None)
    yield _rules(report)
    if report.difference is not None:
        yield from _difference(report.difference)
    yield from _overlap(report.new)


def notes(report: Report) -> Iterator[str]:
    """What is to be said in words."""
    tally = report.new.tally
    silent = [r.id for r in report.new.rules.rules if r.effect in ("active", "shadow") and r.id not in tally.fired]
    if silent:
        yield f"Never fired: {', '.join(silent)}"
    if tally.invalid:
        worst = ", ".join(f"{error} ({count:,})" for error, count in tally.invalid.most_common(3))
        yield f"Refused as no transactions: {tally.invalid.total():,}: {worst}"
    if tally.warm_up:
        yield f"Not counted, as they only filled the profiles: {tally.warm_up:,} transactions"
    if tally.point is not None:
        promise = f"; it promises what {tally.point.measured_on} gave" if tally.point.expected is not None else ""
        yield f"The model's operating point: {msgspec.structs.replace(tally.point, expected=None).in_words()}{promise}"
    if not tally.model_told:
        yield "What the model alone would alert on is its forest's own verdict, and no rule of this set says just that"
    if tally.decided.fraud == 0:
        yield "Nothing in this history is labelled as fraud, so there is no precision and no recall: see --labels"


def _overview(report: Report) -> Grid:
    sides = [report.new] if report.old is None else [report.old, report.new]
    tallies = [side.tally for side in sides]
    rows = [
        ["ruleset version", *(t.ruleset_version for t in tallies)],
        ["transactions", *(f"{t.decided.total:,}" for t in tallies)],
        ["days", *(f"{t.days:,}" for t in tallies)],
        ["alerts", *(f"{t.alerts.total:,}" for t in tallies)],
        ["alerts a day", *(_rate(t.alerts.total, t.days) for t in tallies)],
        ["of them repeats (suppressed)", *(f"{t.suppressed:,}" for t in tallies)],
        ["share of transactions", *(_share(t.alerts.total, t.decided.total) for t in tallies)],
        ["precision", *(_percent(t.alerts.precision) for t in tallies)],
        ["recall", *(_share(t.alerts.fraud, t.decided.fraud) for t in tallies)],
    ]
    names = [Path(side.name).name for side in sides]
    return Grid(f"Backtest on {report.source}", ["", *names], rows, wraps=frozenset({1, 2}))


def _decisions(side: Side, named: bool) -> Iterator[Grid]:
    """Who would have alerted on what, beside what the operating point promised; by action; by kind of fraud."""
    tally, of = side.tally, f" of {Path(side.name).name}" if named else ""
    sides = [tally.by_decider[name] if name != "model" or tally.model_told else None for name in DECIDERS]
    promised = (tally.point.expected if tally.point is not None else None) or _NOTHING

    def row(name: str, cell: Callable[[Caught], str], promise: str = "") -> list[str]:
        return [name, *("-" if each is None else cell(each) for each in sides), promise]

    def promise(interval: Interval | None, form: Callable[[float], str]) -> str:
        if interval is None:
            return "-"
        return f"{form(interval.value)} ({form(interval.low)} to {form(interval.high)})"

    rows = [
        row("alerts", lambda c: f"{c.total:,}"),
        row(
            "alerts a day",
            lambda c: _rate(c.total, tally.days),
            promise(promised.alerts_a_day, lambda value: f"{value:,.1f}"),
        ),
        row("precision", lambda c: _percent(c.precision), promise(promised.precision, _rounded)),
        row(
            "recall",
            lambda c: _share(c.fraud, tally.decided.fraud),
            promise(promised.recall, _rounded),
        ),
        row("money caught a day", lambda c: f"{c.money / tally.days:,.2f}" if tally.days else "-"),
        row(
            "of the frauds' money",
            lambda c: _percent(c.money / tally.money.money if tally.money.money else None),
            promise(promised.money_caught, _rounded),
        ),
    ]
    if tally.decided.fraud == 0:
        rows = rows[:2]
    yield Grid(f"Decisions{of}", ["", "rules alone", "model alone", "both", "promised for both"], rows)
    if tally.by_action:
        rows = [[action, *_counts(tally.by_action[action])] for action in sorted(tally.by_action, reverse=True)]
        columns = ["action", "alerts", "fraud", "genuine", "not known", "precision"]
        yield Grid(f"Alerts{of} by action", columns, rows)
    if tally.scenarios:
        by_size = sorted(tally.scenarios.items(), key=lambda item: (-item[1]["all"].fraud, item[0]))
        rows = []
        for scenario, caught in by_size:
            whole = caught["all"]
            shares = (
                _share(caught[name].fraud, whole.fraud) if name != "model" or tally.model_told else "-"
                for name in DECIDERS
            )
            money = _percent(caught["both"].money / whole.money if whole.money else None)
            rows.append([scenario, f"{whole.fraud:,}", *shares, money])
        columns = ["scenario", "frauds", "rules alone", "model alone", "both", "money caught"]
        yield Grid(f"Recall{of} by scenario", columns, rows)


class _Promise(NamedTuple):
    """As much of a `CurvePoint` as is promised by none."""

    alerts_a_day: Interval | None = None
    precision: Interval | None = None
    recall: Interval | None = None
    money_caught: Interval | None = None


_NOTHING = _Promise()


def _rounded(share: float) -> str:
    return f"{share:.0%}"


def _rules(report: Report) -> Grid:
    tally, old = report.new.tally, report.old
    columns = ["rule", "mode", "fires", "a day", "alone", "precision", "recall"]
    rows = []
    for rule in _in_order(report):
        fired = tally.fired.get(rule.id, Confusion())
        here = any(rule.id == r.id for r in report.new.rules.rules)
        row = [
            rule.id,
            rule.effect if here else "gone",
            f"{fired.total:,}",
            _rate(fired.total, tally.days),
            f"{tally.alone[rule.id]:,}",
            _percent(fired.precision),
            _share(fired.fraud, tally.decided.fraud),
        ]
        if old is not None:
            row.append(f"{old.tally.fired.get(rule.id, Confusion()).total:,}")
        rows.append(row)
    return Grid("Rules", columns + (["before"] if old else []), rows, frozenset({0, 1}))


def _in_order(report: Report) -> list[Rule]:
    rules = list(report.new.rules.rules)
    known = {rule.id for rule in rules}
    return rules + [rule for rule in (report.old.rules.rules if report.old else ()) if rule.id not in known]


def _difference(difference: Difference) -> Iterator[Grid]:
    sides = (("adds", difference.added), ("drops", difference.dropped))
    rows = [[f"it {verb}", *_counts(found.all)] for verb, found in sides]
    rows.append(["both make", f"{difference.kept:,}", "", "", "", ""])
    yield Grid("Alerts that the new ruleset", ["", "alerts", "fraud", "genuine", "not known", "precision"], rows)
    for verb, found in sides:
        if found.by_rule:
            rows = [[rule, *_counts(c)] for rule, c in sorted(found.by_rule.items(), key=lambda item: -item[1].total)]
            yield Grid(
                f"What it {verb}, by rule", ["rule", "alerts", "fraud", "genuine", "not known", "precision"], rows
            )
        if found.examples:
            rows = [
                [
                    a.timestamp[:16],
                    f"{a.user}: {a.amount:,.2f} at {a.merchant}, {a.location}",
                    f"{a.score:.2f}",
                    {True: "fraud", False: "genuine", None: "?"}[truth],
                    " · ".join(a.reason),
                ]
                for a, truth in found.examples
            ]
            columns = ["when", "who pays what", "score", "truth", "reason"]
            yield Grid(f"Examples of what it {verb}", columns, rows, frozenset({0, 1, 3, 4}), frozenset({1, 4}))


def _overlap(side: Side) -> Iterator[Grid]:
    fired = side.tally.fired
    rows = [
        [
            a,
            b,
            f"{count:,}",
            _share(count, fired[a].total),
            _share(count, fired[b].total),
        ]
        for (a, b), count in side.tally.pairs.most_common(_PAIRS)
    ]
    if rows:
        columns = ["rule", "and", "together", "of the first", "of the second"]
        yield Grid("Rules that fire on the same transactions", columns, rows, frozenset({0, 1}), frozenset({0, 1}))


def show(report: Report, console: Console) -> None:
    """Prints the report, within 80 columns where the console is no terminal."""
    for grid in grids(report):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for number, name in enumerate(grid.columns):
            justify: Literal["left", "right"] = "left" if number in grid.left else "right"
            table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=number not in grid.wraps)
        for row in grid.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(Text(printable(grid.title), "italic"), table, "", sep="\n")
    for note in notes(report):
        console.print(Text(printable(note)))
    decided = report.new.tally.decided.total + report.new.tally.warm_up
    console.print(Text(f"{decided:,} transactions in {report.seconds:.0f} s"))


def to_html(report: Report) -> str:
    """One page that needs no other file; whatever comes from rules or transactions is escaped."""
    first, *others = grids(report)
    parts = [*_table(first), *(paragraph(note) for note in notes(report))]
    for title, image in plots(report):
        parts += [heading(title), picture(image, title)]
    for grid in others:
        parts += _table(grid)
    return page(f"Backtest of {report.new.name}", parts)


def to_json(report: Report) -> bytes:
    """The same for a program: `source`, `seconds`, `notes`, and `grids` with the fields of `Grid`; cells are plain."""
    shown = {
        "source": report.source,
        "seconds": report.seconds,
        "grids": [grid._asdict() for grid in grids(report)],
        "notes": list(notes(report)),
    }
    return msgspec.json.encode(shown)


def _table(grid: Grid) -> list[Html]:
    return [heading(grid.title), table(grid.columns, grid.rows, grid.left)]


def plots(report: Report) -> Iterator[tuple[str, bytes]]:
    """Titles and PNGs: alerts by day, by rule, precision and recall of the rules, their overlap."""
    sides = [(report.new, NEW)] if report.old is None else [(report.old, OLD), (report.new, NEW)]
    rules = [rule.id for rule in _in_order(report) if any(rule.id in side.tally.fired for side, _ in sides)]

    figure, axes = drawing(9, 3)
    for side, color in sides:
        days = sorted(side.tally.by_day)
        label = Path(side.name).name.replace("$", r"\$")
        axes.plot([date_of(d) for d in days], [side.tally.by_day[d][1] for d in days], ".-", color=color, label=label)
    axes.set(ylabel="alerts", ylim=(0, None))
    axes.legend(frameon=False)
    figure.autofmt_xdate()
    yield "Alerts by day", png(figure)
    if not rules:
        return

    figure, axes = drawing(9, 1 + 0.3 * len(rules) * len(sides))
    width = 0.8 / len(sides)
    for number, (side, color) in enumerate(sides):
        counts = [side.tally.fired[rule].total if rule in side.tally.fired else 0 for rule in rules]
        places = [place + (number - (len(sides) - 1) / 2) * width for place in range(len(rules))]
        axes.barh(places, counts, width, color=color, label=Path(side.name).name.replace("$", r"\$"))
    axes.set_yticks(range(len(rules)), rules)
    axes.invert_yaxis()
    axes.set(xlabel="transactions on which it fires")
    axes.legend(frameon=False)
    yield "Rules", png(figure)

    tally = report.new.tally
    known = [(r, tally.fired[r]) for r in rules if r in tally.fired and tally.fired[r].precision is not None]
    if tally.decided.fraud and known:
        figure, axes = drawing(9, 4)
        for rule, fired in known:
            at = fired.fraud / tally.decided.fraud, fired.precision
            axes.plot(*at, "o", color=GREY)
            axes.annotate(rule, at, textcoords="offset points", xytext=(5, 3), fontsize=8)
        axes.plot(
            tally.alerts.fraud / tally.decided.fraud,
            tally.alerts.precision,
            "D",
            color=NEW,
            label="all alerts together",
        )
        axes.set(xlabel="recall: share of the known frauds", ylabel="precision", ylim=(-0.02, 1.05), xlim=(-0.02, None))
        axes.legend(frameon=False)
        yield "Precision and recall by rule", png(figure)

    if len(rules) > 1:
        overlap = np.array([[_together(tally, a, b) for b in rules] for a in rules])
        figure, axes = drawing(9, 1.5 + 0.35 * len(rules))
        shown = axes.imshow(overlap, cmap="Reds", vmin=0, vmax=1)
        axes.set_xticks(range(len(rules)), rules, rotation=45, ha="right")
        axes.set_yticks(range(len(rules)), rules)
        figure.colorbar(shown, label="share of the row's transactions")
        yield "Overlap", png(figure)


def _together(tally: Tally, a: str, b: str) -> float:
    first, second = sorted((a, b))
    fired = tally.fired.get(a, Confusion()).total
    both = fired if a == b else tally.pairs[first, second]
    return both / fired if fired else 0.0


def _counts(c: Confusion) -> list[str]:
    return [f"{c.total:,}", f"{c.fraud:,}", f"{c.genuine:,}", f"{c.unknown:,}", _percent(c.precision)]


def _rate(count: int, days: int) -> str:
    return f"{count / days:,.1f}" if days else "-"


def _share(count: int, of: int) -> str:
    return _percent(count / of if of else None)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
