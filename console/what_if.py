"""How `python -m training.threshold` is asked what another threshold would have given, and to put one in service."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from dataflow.settings import Settings

MODULE: Final = "training.threshold"

Kind = Literal["at", "alerts-per-day"]


def trial(settings: Settings, kind: Kind, value: float, days: float) -> Sequence[str]:
    """The arguments that try a threshold, or as many alerts a day, on the decisions of the last days."""
    return ["--topics", "--last", f"{days:g}d", f"--{kind}", repr(value), *_files(settings), "--try"]


def move(settings: Settings, threshold: float) -> Sequence[str]:
    """The arguments that put a threshold in service, measured on nothing."""
    return ["--at", repr(threshold), *_files(settings)]


def _files(settings: Settings) -> list[str]:
    return ["--model", str(settings.model_file), "--rules", str(settings.rules_file)]


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was found, in words: of what, in service, and tried."""
    before, after = figures["before"], figures["after"]
    money, days = figures["fraud_money"] or 0.0, figures["days"] or 0.0

    def both(name: str, of: Any) -> tuple[str, str, str]:
        return name, of(before.get("expected")), of(after.get("expected"))

    def share(key: str) -> Any:
        return lambda point: _interval(point and point.get(key), 100.0, "{:.0f}%")

    def caught(point: dict[str, Any] | None) -> str:
        found = point and point.get("money_caught")
        return f"{found['value'] * money / days:,.2f} a day" if found and days else "no label"

    return [
        ("threshold", f"{before['alert']:.4f}", f"{after['alert']:.4f}"),
        both(
            "alerts a day, those of other rules too", lambda p: _interval(p and p.get("alerts_a_day"), 1.0, "{:,.1f}")
        ),
        both("precision", share("precision")),
        both("recall, of the frauds that became known", share("recall")),
        both("their money caught", caught),
        both("share of their money", share("money_caught")),
    ]


def _interval(found: dict[str, float] | None, factor: float, form: str) -> str:
    """An estimate, and where the true value is thought to lie."""
    if not found:
        return "no label"
    value, low, high = (form.format(found[key] * factor) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
