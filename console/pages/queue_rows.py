"""The rows of the queue's grid, and what of them a browser is sent."""

import hashlib
import secrets
from typing import Any, Final

from console.shown_text import moment, money, shown
from console.view import View

AT_ONCE: Final = 50
"""Rows that one change of the grid adds, changes or removes: so it takes the page's thread some 10 ms."""

_KEY: Final = secrets.token_bytes(16)


def id_of_group(name: str) -> str:
    """By which a browser knows a group, as what its alerts share may be a card number; nobody else can reckon it."""
    return hashlib.blake2b(name.encode(errors="surrogatepass"), key=_KEY, digest_size=12).hexdigest()


def row_of(case: dict[str, Any], view: View) -> dict[str, Any]:
    """A case, or a group, as a row of the grid: texts, and `order`, by which the grid sorts."""
    newest = f"{case['last_alert']:015}"
    riskiest = f"{case['score']:.6f} {case['amount']:025.2f} {newest}"
    row = {
        "order": newest if view.order == "newest" else riskiest,
        "score": f"{case['score']:.3f}",
        "alerts": case["alerts"],
        "amount": money(case["amount"]),
        "last": moment(case["last"]),
    }
    if view.group != "user":
        return row | {
            "id": id_of_group(case["name"]), "user": shown(case["name"]), "cases": case["cases"],
            "users": case["users"],
        }  # fmt: skip
    state = {"taken": f"{case['analyst']} has it", "closed": f"{case['outcome']}, {case['analyst']}"}
    said = state.get(case["state"], case["state"])
    if case["label"] and case["state"] != "closed":  # else nobody sees what is done already
        said = f"{case['label']}; {said}"
    return row | {
        "id": str(case["number"]),
        "action": case["action"],
        "user": shown(case["user"]),
        "why": shown(" · ".join(case["why"])),
        "merchant": shown(case["merchant"]),
        "state": shown(said),
    }


class Shown:
    """The rows that a browser has, and what must be sent so that it has others."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self.complete = True
        """Whether the browser has all that was asked for last."""

    def change_to(self, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """The transaction for AG Grid that makes of its rows these, the first ones first; empty where they are these.

        It is of `AT_ONCE` changes of each kind at most: what is left comes with the next call.
        """
        wanted = {row["id"]: row for row in rows}
        new = [row for name, row in wanted.items() if name not in self._rows]
        other = [row for name, row in wanted.items() if name in self._rows and self._rows[name] != row]
        gone = [name for name in self._rows if name not in wanted]
        self.complete = max(len(new), len(other), len(gone)) <= AT_ONCE
        change = {"add": new[:AT_ONCE], "update": other[:AT_ONCE], "remove": [{"id": name} for name in gone[:AT_ONCE]]}
        for row in (*change["add"], *change["update"]):
            self._rows[row["id"]] = row
        for name in gone[:AT_ONCE]:
            del self._rows[name]
        return {kind: each for kind, each in change.items() if each}
