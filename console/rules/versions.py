"""Every version of the rules file that the console has seen or written: by whom, when, and why; and analysts' copies.

A version that is to be written is noted before the file is replaced, and counts once the file is seen to hold it. So
whenever the process is killed, what the file holds is what the last version says, under the name of whoever wrote it.
"""

import hashlib
from typing import Final, Literal, NamedTuple

import msgspec

from console.audit import note_down
from console.database import Connection, Result, Row

What = Literal["file", "shadow", "promote", "back"]
THE_FILE: Final = "the file"
"""In place of an analyst's name, of a version that somebody wrote into the file without the console."""
IN_WORDS: Final[dict[What, str]] = {
    "file": "came from the file",
    "shadow": "put into shadow",
    "promote": "promoted",
    "back": "went back",
}


class Version(msgspec.Struct, frozen=True):
    """One version of the file."""

    number: int
    at: float  # s since 1970, by the console's clock
    who: str
    what: What
    reason: str
    digest: str
    content: bytes
    copy: str | None = None  # of one that tries a copy in shadow: that copy
    base: int | None = None  # of such a one: the version without what is tried

    @property
    def text(self) -> str:
        """The content for people."""
        return self.content.decode("utf-8-sig", errors="replace")


class Trial(NamedTuple):
    """What a version tries in shadow."""

    copy: str
    base: int  # the version that it is tried beside


class Draft(msgspec.Struct, frozen=True):
    """An analyst's copy, which counts for nothing yet."""

    text: str
    base: str  # digest of the file that it was made of
    at: float


def digest_of(content: bytes) -> str:
    """What tells a version from others."""
    return hashlib.sha256(content).hexdigest()


def newest(connection: Connection) -> Version | None:
    """The version that the file was last seen to hold."""
    return _first(connection.execute("SELECT * FROM rule_versions WHERE in_place ORDER BY number DESC LIMIT 1"))


def one(connection: Connection, number: int) -> Version | None:
    """A version that the file has held."""
    return _first(connection.execute("SELECT * FROM rule_versions WHERE in_place AND number = ?", [number]))


def all_of(connection: Connection, most: int) -> list[Version]:
    """The versions that the file has held, the newest first."""
    rows = connection.execute("SELECT * FROM rule_versions WHERE in_place ORDER BY number DESC LIMIT ?", [most])
    return [_version(row) for row in rows]


def without_trial(connection: Connection) -> Version | None:
    """The newest version, or the one that it was made of by adding what is tried."""
    last = newest(connection)
    return last if last is None or last.base is None else one(connection, last.base)


def _first(rows: Result) -> Version | None:
    row = rows.fetchone()
    return None if row is None else _version(row)


def _version(row: Row) -> Version:
    return Version(**{name: row[name] for name in Version.__struct_fields__})


def intend(
    connection: Connection,
    content: bytes,
    what: What,
    who: str,
    reason: str,
    now: float,
    trial: Trial | None = None,
) -> None:
    """Notes a version that is about to be written, in place of any that was and is not."""
    forget_intended(connection)
    copy, base = (None, None) if trial is None else trial
    connection.execute(
        "INSERT INTO rule_versions (at, who, what, reason, digest, content, copy, base, in_place) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, FALSE)",
        [now, who, what, reason, digest_of(content), content, copy, base],
    )


def forget_intended(connection: Connection) -> None:
    """Drops what was about to be written, and is not in the file."""
    connection.execute("DELETE FROM rule_versions WHERE NOT in_place")


def settle(connection: Connection, content: bytes, now: float) -> bool:
    """Brings the versions up to what the file holds; returns whether that is a new one.

    What was about to be written and is there counts from now on; what is not there was not written. What nobody was
    about to write came from the file itself.
    """
    last = newest(connection)
    changed = last is None or last.digest != digest_of(content)
    if changed:
        about_to = _intended(connection)
        if about_to is None or about_to.digest != digest_of(content):
            reason = "the first that the console saw" if last is None else "it changed on the disk"
            intend(connection, content, "file", THE_FILE, reason, now)
            about_to = _intended(connection)
        assert about_to is not None  # noqa: S101 - it was just noted
        connection.execute("UPDATE rule_versions SET in_place = TRUE WHERE number = ?", [about_to.number])
        detail = f"version {about_to.number} ({about_to.digest[:12]}): {about_to.reason}"
        note_down(connection, now, about_to.who, f"rules: {IN_WORDS[about_to.what]}", None, None, detail)
    forget_intended(connection)
    return changed


def _intended(connection: Connection) -> Version | None:
    return _first(connection.execute("SELECT * FROM rule_versions WHERE NOT in_place"))


def draft_of(connection: Connection, analyst: str) -> Draft | None:
    """An analyst's copy; None where they have none."""
    row = connection.execute("SELECT text, base, at FROM rule_drafts WHERE analyst = ?", [analyst]).fetchone()
    return None if row is None else Draft(*row)


def keep_draft(connection: Connection, analyst: str, text: str, base: str, now: float) -> None:
    """Keeps an analyst's copy, in place of the one before."""
    connection.execute(
        "INSERT INTO rule_drafts VALUES (?, ?, ?, ?) ON CONFLICT (analyst) "
        "DO UPDATE SET text = excluded.text, base = excluded.base, at = excluded.at",
        [analyst, text, base, now],
    )


def drop_draft(connection: Connection, analyst: str) -> None:
    """Forgets an analyst's copy."""
    connection.execute("DELETE FROM rule_drafts WHERE analyst = ?", [analyst])
