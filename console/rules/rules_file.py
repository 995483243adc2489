"""The rules file, which is the truth: what stands in it counts, whoever wrote it.

The console notices what others write into it, and writes only over what whoever asks has seen.
"""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from console.database import Connection, Database, DatabaseError
from console.rules import versions
from console.rules.trial import in_shadow
from console.rules.versions import Trial, Version, What
from dataflow.errors import UserError
from dataflow.process.file_watch import FileWatch, Stamps, stamp
from dataflow.process.whole_files import put_in_place
from dataflow.rules.lists import ListFiles, read_regular
from dataflow.rules.rules_file import examine
from dataflow.rules.ruleset import RuleSet

T = TypeVar("T")

_log = logging.getLogger("redflag.console")
_PLACE_OF_TOML = re.compile(r"\(at line (\d+), column \d+\)")
_RULE = re.compile(r": rule '([^']+)'(?:, (when|reason))?(?:, line (\d+))?")


class ChangedMeanwhileError(Exception):
    """The file no longer is what whoever writes has seen; `now` is the version that it holds."""

    def __init__(self, now: Version):
        self.now = now
        who = "Somebody" if now.what == "file" else now.who
        super().__init__(f"{who} has changed the file meanwhile (version {now.number}: {now.reason})")


class Mistake(msgspec.Struct, frozen=True):
    """One mistake in a rules file."""

    text: str  # as `python -m dataflow.rules check` tells it
    line: int | None  # of the file, from 1, where it can be told


class RulesFile(FileWatch):
    """The file, and all that the console does with it."""

    def __init__(self, path: Path, database: Database, check_every: float, clock: Callable[[], float]):
        """Nothing is read until `begin`; `check_every`: see `FileWatch`; `clock`: s since 1970."""
        super().__init__("console-rules", check_every)
        self.path = path
        self._database = database
        self._now = clock
        self._writing = threading.RLock()  # what is written is also settled before anybody else looks
        self._checking = threading.Lock()
        self._lists = ListFiles()
        self.trouble = ""
        """Why the file cannot be read, in one line; "" if it can."""

    def begin(self) -> None:
        """Takes up what the file holds, and from now on notices what changes in it."""
        self._reload()
        if not self.trouble:  # what a killed console was about to write, and did not, counts no more
            self._change(versions.forget_intended)
        self._seen = self._used
        self.watch()

    def _stamps(self) -> Stamps:
        return (stamp(self.path),)

    def _reload(self) -> None:
        self._used = self._stamps()  # before reading: a file that changes meanwhile differs from it, and is read again
        try:
            self.notice()
        except UserError as error:
            self.trouble = f"RULES_FILE={self.path}: {error}"
            _log.warning("%s", self.trouble)
        except DatabaseError as error:  # the reader waits, or ends the process, if it cannot write either
            self._used = ()  # which the file never is: it is read again at the next look
            self.trouble = f"the change of {self.path} is not kept: {error}"
            _log.warning("%s", self.trouble)

    def notice(self) -> Version:
        """Keeps what the file holds as a version, unless it is the newest one already; returns that.

        Raises:
            UserError: it cannot be read.
        """
        with self._writing:
            content = read_regular(self.path)
            self.trouble = ""
            last = versions.newest(self._database.read())
            if last is None or last.digest != versions.digest_of(content):
                self._database.write(lambda connection: versions.settle(connection, content, self._now()))
                last = versions.newest(self._database.read())
            assert last is not None  # noqa: S101 - it was settled
            return last

    def examine(self, content: bytes) -> tuple[RuleSet | None, list[Mistake]]:
        """The ruleset that this would be in place of the file's content, or None and its mistakes.

        It is the check of `python -m dataflow.rules`; lists are found beside the file.
        """
        with self._checking:
            rules, mistakes = examine(self.path, self._lists, content=content)
            self._lists.forget_others()
        text = content.decode("utf-8-sig", errors="replace")
        return rules, [Mistake(each.removeprefix(f"{self.path}: "), line_of(text, each)) for each in mistakes]

    def write(
        self, content: bytes, seen: str, what: What, who: str, reason: str, trial: Trial | None = None
    ) -> Version:
        """Puts this in the file's place at once, and keeps it as a version. `seen`: digest of what it replaces.

        Raises:
            UserError: no reason is given, there is a mistake in it, it is there already, or it cannot be written.
            ChangedMeanwhileError: the file holds something else than was seen.
        """
        if not reason.strip():
            msg = "say why: every version is kept with its reason"
            raise UserError(msg)
        rules, mistakes = self.examine(content)
        if rules is None:
            more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
            msg = f"nothing was written: {mistakes[0].text}{more}"
            raise UserError(msg)
        with self._writing:
            now = self.notice()
            if now.digest != seen:
                raise ChangedMeanwhileError(now)
            if now.digest == versions.digest_of(content):
                msg = "nothing was written: the file says just that already"
                raise UserError(msg)
            self._change(lambda connection: versions.intend(connection, content, what, who, reason, self._now(), trial))
            try:
                put_in_place({self.path.resolve(): content})  # a link stays one
            except UserError as error:
                self._change(lambda connection: versions.settle(connection, now.content, self._now()))
                msg = f"RULES_FILE: {error}: the console needs to write into that folder, as its user"
                raise UserError(msg) from None
            return self.notice()

    def go_back(self, number: int, seen: str, who: str) -> Version:
        """Puts an earlier version in the file's place.

        Raises:
            UserError: there is no such version, or as in `write`.
            ChangedMeanwhileError: as in `write`.
        """
        earlier = versions.one(self._database.read(), number)
        if earlier is None:
            msg = f"there is no version {number}"
            raise UserError(msg)
        trial = None
        if earlier.copy is not None and earlier.base is not None:
            trial = Trial(earlier.copy, earlier.base)
        return self.write(earlier.content, seen, "back", who, f"back to version {number}: {earlier.reason}", trial)

    def try_in_shadow(self, copy: str, seen: str, who: str, reason: str) -> tuple[Version, list[str]]:
        """Puts what is new in a copy into shadow, in place of what was tried before; and what of it is not tried.

        Raises:
            UserError: the copy has a mistake, or nothing to try; or as in `write`.
            ChangedMeanwhileError: as in `write`.
        """
        rules, mistakes = self.examine(copy.encode())
        if rules is None:
            msg = f"nothing was written: {mistakes[0].text}"
            raise UserError(msg)
        with self._writing:
            self.notice()
            served = versions.without_trial(self._database.read())
            assert served is not None  # noqa: S101 - it was noticed
            tried, untried = in_shadow(served.text, copy)
            return self.write(tried.encode(), seen, "shadow", who, reason, Trial(copy, served.number)), untried

    def _change(self, change: Callable[[Connection], T]) -> T:
        return self._database.write(change)


def line_of(text: str, mistake: str) -> int | None:
    """The line of the file that a mistake is about, from 1; None where it names none.

    The checker's own lines are of a rule's text: `rule 'night', when, line 2` is the second line of what `when` says.
    """
    if (toml := _PLACE_OF_TOML.search(mistake)) is not None:
        return int(toml[1])
    found = _RULE.search(mistake)
    if found is None:
        return None
    rule, key, within = found.groups()
    lines = text.split("\n")
    heads = [number for number, line in enumerate(lines) if line.strip().startswith("[")]
    for begin, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        block = lines[begin:end]
        if any(re.match(rf"""\s*id\s*=\s*["']{re.escape(rule)}["']""", line) for line in block):
            for number, line in enumerate(block, begin + 1):
                if key is not None and (begins := re.match(rf"""\s*{key}\s*=\s*(\"{{3}}|'{{3}})?(.*)""", line)):
                    opened_before = begins[1] is not None and not begins[2].strip()
                    return number + int(within or 1) - 1 + opened_before
            return begin + 1
    return None
