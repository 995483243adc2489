"""A profile as an operator reads it: what `python -m dataflow.state user` prints first."""

import math
from typing import Any

import numpy as np

from dataflow.profiles.labels import BLOCK, FRAUD, WAITING
from dataflow.tables.table import Tables

WINDOWS = (("hours", "24 hours"), ("days", "7 days"), ("five_days", "30 days"))


def describe_user(tables: Tables, row: int) -> list[str]:
    """A user's profile in sentences, from the tables of their lane; as of their newest transaction."""
    p = tables["profiles"].rows[row]
    lines = _transactions(p)
    place = tables["names"].keys[p["last_location"]]
    if place:
        lines.append(f"last seen in {place}")
    known = [f"{np.count_nonzero(p[field])} {field}" for field in ("merchants", "devices") if p[field].any()]
    if known:
        lines.append(f"known of late: {' and '.join(known)}, of which hashes are kept, not names")
    locations = [tables["names"].keys[number] for number in p["locations"].tolist() if number]
    if locations:
        lines.append(f"locations of late: {', '.join(str(location) for location in locations)}")
    if p["placed"]:
        lines.append(
            f"the centre of their places is {p['home_latitude']:.2f}, {p['home_longitude']:.2f}, "
            f"{p['roam']:.0f} km from it are usual"
        )
    if p["labelled"]:
        labelled = tables["labelled"].rows[p["labelled"]]
        flags = _flags(tables, int(labelled["block"]), int(labelled["n"]))
        waiting = sum(flag & WAITING != 0 for flag in flags)
        lines.append(
            f"labels remembered: {len(flags)}, of them {sum(flag & FRAUD != 0 for flag in flags)} of frauds, "
            f"{waiting} of transactions that have not come"
        )
        lines.append(f"confirmed frauds: {labelled['frauds']:.0f}")
    return lines


def describe_merchant(tables: Tables, row: int) -> list[str]:
    """A merchant's profile in sentences."""
    p = tables["profiles"].rows[row]
    lines = _transactions(p)
    if p["labelled"]:
        labelled = tables["labelled"].rows[p["labelled"]]
        counts = [f"{_sum(labelled, f'{name}_n'):.0f} in {words}" for name, words in WINDOWS]
        frauds = [f"{_sum(labelled, f'{name}_sum'):.0f} in {words}" for name, words in WINDOWS]
        lines.append(f"labels that came: {', '.join(counts)}; of them of frauds {', '.join(frauds)}")
        if labelled["frauds"]:
            lines.append(
                f"the last run of frauds that amounts do not explain: {labelled['frauds']:.0f}, from "
                f"{_day(labelled['first'])} to {_day(labelled['last'])}, {labelled['since']:.0f} genuine ones since"
            )
    return lines


def _transactions(p: Any) -> list[str]:
    """What both kinds of profiles have."""
    if not p["seen"]:
        return ["no transaction yet"]
    since = f" since {_day(p['first_day'])}" if "first_day" in p.dtype.names else ""
    lines = [f"{p['seen']:.0f} transactions{since}, the newest at {_moment(p['last_at'])}"]
    largest = f", the largest so far {p['largest']:.2f}" if "largest" in p.dtype.names else ""
    lines.append(f"usual amount {p['mean']:.2f}{largest}")
    counts = [f"{_sum(p, f'{name}_n'):.0f} of {_sum(p, f'{name}_sum'):,.2f} in {words}" for name, words in WINDOWS]
    lines.append(f"up to then {', '.join(counts)}")
    return lines


def _flags(tables: Tables, block: int, n: int) -> list[int]:
    """The flags of a chain of labels."""
    found: list[int] = []
    while block and len(found) < n:
        found += tables["blocks"].rows["flags"][block][: min(n - len(found), BLOCK)].tolist()
        block = int(tables["blocks"].rows["next"][block])
    return found


def _sum(p: Any, field: str) -> float:
    return float(p[field].astype(np.float64).sum())


def _moment(at: float) -> str:
    # Not as a datetime: the first moments of the year 1, at an offset east of UTC, lie before all that one can be.
    return f"{np.datetime64(math.floor(at), 's')}+00:00" if math.isfinite(at) else "no time"


def _day(day: float) -> str:
    return str(np.datetime64(math.floor(day), "D"))
