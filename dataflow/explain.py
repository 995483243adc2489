"""`python -m dataflow.explain TRANSACTION_ID`: an alert for people, as it stands on the topic of alerts.

With `--from classified` it is looked for among the decisions that are no alerts, to say so.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from dataflow.connectors.topic_reader import read_topic
from dataflow.errors import UserError
from dataflow.events.decision import Explanation
from dataflow.process import lifecycle
from dataflow.process.terminal import printable
from dataflow.settings import Settings

WIDTH = 80
BAR = 20
"""Characters of the longest bar."""


class Decided(msgspec.Struct):
    """What is shown of a decision's message; an older version may have written less."""

    transaction_id: str
    user: str
    amount: float
    timestamp: str
    location: str
    device: str
    merchant: str
    txn_type: str
    fraudulent: bool
    reason: list[str]
    score: float
    rules: list[str] = []
    ruleset_version: str = "unknown"
    model_version: str = "unknown"
    action: str | None = None
    model_score: float | None = None
    alert_threshold: float | None = None
    explanation: list[Explanation] = []


class _Named(msgspec.Struct):
    transaction_id: str


_named = msgspec.json.Decoder(_Named).decode
_decided = msgspec.json.Decoder(Decided).decode


def find(values: Iterable[bytes | None], transaction_id: str) -> Decided | None:
    """The last decision on a transaction among the messages of a topic; what is no decision is passed over."""
    found = None
    for value in values:
        try:
            if value is not None and _named(value).transaction_id == transaction_id:
                found = _decided(value)
        except (msgspec.DecodeError, UnicodeDecodeError):  # someone else's
            continue
    return found


def layout(decided: Decided) -> str:
    """A decision as plain lines of at most `WIDTH` columns; control characters in it are made visible."""
    title = f"Alert {decided.transaction_id}" if decided.fraudulent else f"Not an alert: {decided.transaction_id}"
    lines = _wrapped(title, 0)
    what = (
        ("amount", f"{decided.amount:,.2f}" if abs(decided.amount) < 1e15 else f"{decided.amount:g}"),
        ("user", decided.user),
        ("merchant", f"{decided.merchant} ({decided.txn_type})"),
        ("location", decided.location),
        ("device", decided.device),
        ("time", decided.timestamp),
        ("action", decided.action),
        ("score", _score(decided)),
        ("reasons", "; ".join(decided.reason) or None),
    )
    for name, value in what:
        if value is not None:
            lines += _wrapped(f"  {name:<10}{value}", 12)
    if decided.fraudulent:
        lines.append("")
        lines += _entries(decided.explanation)
    lines.append("")
    lines += _wrapped(f"  decided by model {decided.model_version} and rules {decided.ruleset_version}", 4)
    return "\n".join(lines)


def _score(decided: Decided) -> str:
    score = f"{decided.score:.3f}"
    if decided.model_score is not None and decided.alert_threshold is not None:
        score += f"; the model's own {decided.model_score:.3f}, which alerts from {decided.alert_threshold:.3f}"
    return score


def _entries(explanation: Sequence[Explanation]) -> list[str]:
    if not explanation:
        return _wrapped("  It says nothing of why: an older version decided it.", 2)
    lines = ["  Why, and by how much the score would fall without it:"]
    strongest = max(entry.effect for entry in explanation)
    for entry in explanation:
        share = entry.effect / strongest if strongest > 0.0 else 0.0
        bar = "#" * max(round(BAR * share), int(entry.effect > 0.0))
        lines += _wrapped(f"  {entry.effect:6.3f} {bar:<{BAR}}  {entry.text}", 11 + BAR)
        if entry.fraud_factor is not None:
            lines += _wrapped(f"{'':{11 + BAR}}such values: {entry.fraud_factor:g} times as often fraud", 11 + BAR)
    return lines


def _wrapped(line: str, indent: int) -> list[str]:
    """The line in pieces that fit, the second and later ones indented; wide characters count as two columns."""
    shown = printable(line)
    console = Console(width=WIDTH, color_system=None)
    head, rest = Text(shown[:indent]), Text(shown[indent:])
    pieces = [piece.plain.rstrip() for piece in rest.wrap(console, WIDTH - indent)] or [""]
    return [(head.plain if n == 0 else " " * indent) + piece for n, piece in enumerate(pieces)]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the alert; 2 for a user's mistake, also where there is no such alert."""
    parser = argparse.ArgumentParser(
        prog="python -m dataflow.explain", description="Prints an alert and why it is one, for people."
    )
    parser.add_argument("transaction_id", metavar="TRANSACTION_ID", help="as it stands in the decision")
    parser.add_argument(
        "--from",
        dest="place",
        choices=("alerts", "classified"),
        default="alerts",
        help="which decisions to look among: the alerts (default), or those that are none",
    )
    options = parser.parse_args(argv)
    try:
        settings = Settings.load()
        lifecycle.warn_of_unknown(settings)
        topic = settings.alerts_topic if options.place == "alerts" else settings.classified_topic
        decided = find((message.value() for message in read_topic(settings, topic)), options.transaction_id)
        if decided is None:
            other = "--from classified looks among the others" if options.place == "alerts" else "it may be an alert"
            msg = f"there is no decision on {options.transaction_id!r} on {topic!r}: {other}"
            raise UserError(msg)
    except UserError as error:
        lifecycle.complain(error)
        return 2
    except KeyboardInterrupt:
        print("redflag: stopped", file=sys.stderr)
        return 130
    shown = layout(decided)
    encoding = sys.stdout.encoding or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding))
    return 0


if __name__ == "__main__":
    lifecycle.report_mistakes()
    sys.exit(main())
