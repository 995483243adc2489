"""The rules: what they find, a copy to edit, try and put in service, and every version that there was."""

import asyncio
import contextlib
import difflib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nicegui import ui

from console import audit
from console.pages.frame import STATIC, Desk, frame, heading, is_dark, may, part, table, text
from console.pages.rules_tables import Rules, plain_table, show_backtest, show_statistics
from console.rules import versions
from console.rules.backtest import MODULE, arguments
from console.rules.rules_file import ChangedMeanwhileError, Mistake
from console.rules.statistics import statistics
from console.rules.versions import IN_WORDS, Version
from console.shown_text import moment, shown
from dataflow.errors import UserError

SECONDS: Final = 0.2
STILL_SECONDS: Final = 0.4
"""How long nothing is typed until the copy is checked."""
STATISTICS_SECONDS: Final = 15.0
VERSIONS: Final = 50
DIFFERENT_LINES: Final = 400
"""Of what the copy changes, and of a version, that are shown."""
LONGEST: Final = 1_000_000  # characters of a copy
BACKTEST: Final = "backtest"


class RulesPage:
    """One browser's view of the rules."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._typed: float | None = None  # when something was last typed that is not checked yet
        self._version: Version | None = None
        self._base = ""  # digest of the file that the copy was made of
        self._drawn: dict[str, Any] = {}  # what each part shows
        self._counted = 0.0
        self._ruleset = ""  # the version that decisions name
        with frame(desk, "Rules") as session:
            self._session = session
            ui.add_head_html(f'<script defer src="{STATIC}/rules.js"></script>')
            heading(1, "Rules")
            self._state = ui.label("").classes("plain rules-state").props("role=status")
            with part("What the rules find"):
                self._statistics = ui.element("div")
            with part("Your copy"):
                self._editing()
            with part("Backtest of a copy"):
                self._backtest = ui.element("div")
            with part("Versions"):
                text(
                    "The file is the truth: what stands in it counts, whoever wrote it, and the console keeps each "
                    "change as a version. Keep it in version control all the same.",
                    "soft",
                )
                self._versions = ui.element("div")
            with part("What was done"):
                self._audit = ui.element("div")
        ui.timer(SECONDS, self._look, immediate=True)

    # -------------------------------------------------------------------------------------------------- what is there

    def _editing(self) -> None:
        self._editor = ui.codemirror("", language="TOML", theme="vscodeLight", on_change=self._type).classes(
            "rules-editor"
        )
        text("Escape, then Tab leaves the editor.", "soft")
        self._mistakes = ui.element("div").props("role=status").classes("mistakes")
        with ui.element("div").classes("bar-of-tools"):
            self._days = ui.select({1: "the last day", 3: "3 days", 7: "7 days", 14: "14 days", 30: "30 days"},
                                   value=7, label="Backtest on").props("dense outlined")  # fmt: skip
            self._warm_up = ui.select({0: "nothing", 1: "a day", 7: "7 days", 30: "30 days"}, value=0,
                                      label="before, to fill profiles").props("dense outlined")  # fmt: skip
            ui.button("Backtest", on_click=self._try).props("outline")
            ui.button("Stop it", on_click=self._stop).props("flat")
        with ui.element("div").classes("bar-of-tools"):
            self._reason = ui.input("Why").props("dense outlined").style("flex: 1")
            ui.button("Put into shadow", on_click=self._shadow).props("outline")
            ui.button("Promote", on_click=self._promote).props("color=positive")
            ui.button("Start anew from the file", on_click=self._start_anew).props("flat")
        with ui.expansion("What the copy changes").classes("w-full"):
            self._changes = ui.label("").classes("record plain")

    async def _look(self) -> None:
        """Shows what has changed since the last look."""
        if not self._session.may("look"):
            return
        database = self._desk.store.database
        if self._is_new("theme", self._session.dark):
            await self._choose_theme()
        version = await asyncio.to_thread(lambda: versions.newest(database.read()))
        if version is not None and (self._version is None or version.number != self._version.number):
            before, self._version = self._version, version
            if before is None or self._editor.value in (before.text, before.copy):  # nothing was changed in the copy
                await self._open_copy(version)
            self._counted = 0.0
            await self._show_versions()
            self._typed = self._typed or time.monotonic()
        if self._typed is not None and time.monotonic() - self._typed >= STILL_SECONDS:
            self._typed = None
            await self._check()
        if time.monotonic() - self._counted >= STATISTICS_SECONDS:
            self._counted = time.monotonic()
            await self._show_statistics()
        trouble = self._desk.rules.trouble
        self._state.set_text(shown(trouble or _in_words(self._desk.rules.path, version, self._ruleset)))
        run = self._desk.programs.last(BACKTEST)
        if run is not None and self._is_new("backtest", (run.began, run.ended)):
            self._backtest.clear()
            with self._backtest:
                show_backtest(run)

    async def _choose_theme(self) -> None:
        """The editor light or dark, as the page is."""
        with contextlib.suppress(TimeoutError):  # the browser is gone
            self._editor.set_theme("vscodeDark" if await is_dark(self._session) else "vscodeLight")

    def _is_new(self, what: str, state: Any) -> bool:
        is_new = what not in self._drawn or bool(self._drawn[what] != state)  # what is not drawn yet may be None
        self._drawn[what] = state
        return is_new

    async def _show_statistics(self) -> None:
        database, now = self._desk.store.database, self._desk.store.clock()
        found = await asyncio.to_thread(lambda: statistics(database.read(), now))
        rules: Rules = []
        self._ruleset = ""
        if self._version is not None:
            ruleset, _ = await asyncio.to_thread(self._desk.rules.examine, self._version.content)
            if ruleset is not None:
                rules = [(rule.id, rule.effect, rule.action) for rule in ruleset.rules]
                self._ruleset = ruleset.version
        if self._is_new("statistics", (found, rules)):
            self._statistics.clear()
            with self._statistics:
                show_statistics(found, rules)
        done = await asyncio.to_thread(lambda: audit.of_no_case(database.read(), VERSIONS))
        if self._is_new("audit", len(done) and done[0]["number"]):
            self._audit.clear()
            with self._audit:
                rows = [(moment(each["at"]), each["who"], each["what"], each["detail"]) for each in done]
                plain_table("what was done", ("when (UTC)", "who", "what", ""), rows, frozenset(range(4)))

    async def _show_versions(self) -> None:
        database = self._desk.store.database
        all_of = await asyncio.to_thread(lambda: versions.all_of(database.read(), VERSIONS))
        self._versions.clear()
        with self._versions, table("versions"):
            with ui.element("tr"):
                for title in ("version", "when (UTC)", "who", "what", "why", ""):
                    with ui.element("th"):
                        text(title)
            for each in all_of:
                with ui.element("tr"):
                    for cell in (f"{each.number}", moment(each.at), each.who, IN_WORDS[each.what], each.reason):
                        with ui.element("td"):
                            text(cell)
                    with ui.element("td"):
                        ui.button("Into the copy", on_click=lambda v=each: self._take(v.text)).props("flat dense")
                        if each is not all_of[0]:
                            ui.button(
                                f"Go back to {each.number}", on_click=lambda n=each.number: self._go_back(n)
                            ).props("flat dense")

    # --------------------------------------------------------------------------------------------------------- the copy

    async def _open_copy(self, version: Version) -> None:
        """Begins with the analyst's own copy, else with the one that is in shadow, else with the file."""
        database, analyst = self._desk.store.database, self._session.analyst
        draft = await asyncio.to_thread(lambda: versions.draft_of(database.read(), analyst))
        if draft is not None and draft.text != version.text:
            self._base = draft.base
            self._editor.set_value(draft.text)
        else:
            self._base = version.digest
            self._editor.set_value(version.copy if version.copy is not None else version.text)
        if not self._session.may("rules"):
            self._editor.disable()

    def _type(self, _: Any) -> None:
        self._typed = time.monotonic()

    def _take(self, content: str) -> None:
        if may("rules"):
            self._editor.set_value(content)
            self._typed = time.monotonic()

    async def _start_anew(self) -> None:
        if not may("rules") or self._version is None:
            return
        self._base = self._version.digest
        self._editor.set_value(self._version.text)
        analyst = self._session.analyst
        await self._write(lambda connection: versions.drop_draft(connection, analyst))

    async def _check(self) -> None:
        """Checks the copy, shows what is wrong with it and what it changes, and keeps it."""
        content, version = self._editor.value or "", self._version
        if version is None:
            return
        ruleset, mistakes = await asyncio.to_thread(self._desk.rules.examine, content.encode())
        if self._session.may("rules") and len(content) <= LONGEST:
            analyst, base, now = self._session.analyst, self._base, self._desk.store.clock()
            if content == version.text:
                await self._write(lambda connection: versions.drop_draft(connection, analyst))
            else:
                await self._write(lambda connection: versions.keep_draft(connection, analyst, content, base, now))
        self._editor.decorations = [
            {"kind": "line", "line": each.line, "class": "mistake-line"} for each in mistakes if each.line is not None
        ]
        if self._is_new("mistakes", (mistakes, self._base == version.digest, content == version.text)):
            self._show_mistakes(mistakes, len(ruleset.rules) if ruleset is not None else 0, version)
        lines = difflib.unified_diff(
            version.text.splitlines(), content.splitlines(), "the file", "your copy", lineterm="", n=2
        )
        self._changes.set_text("\n".join(shown(line) for line in list(lines)[:DIFFERENT_LINES]) or "Nothing.")

    def _show_mistakes(self, mistakes: list[Mistake], rules: int, version: Version) -> None:
        self._mistakes.clear()
        with self._mistakes:
            for each in mistakes:
                where = f"line {each.line}: " if each.line is not None else ""
                text(f"{where}{each.text}", "fraud")
            if not mistakes:
                same = ", and is what the file holds" if self._editor.value == version.text else ""
                text(f"The copy is right: {rules} rules and lists{same}.", "genuine")
            if self._base != version.digest:
                text(
                    f"The file has changed since this copy was begun: version {version.number}, by {version.who}. "
                    "You are asked before that is written over.",
                    "fraud",
                )

    async def _write(self, change: Callable[[Any], None]) -> None:
        await asyncio.to_thread(self._desk.store.database.write, change)

    # ---------------------------------------------------------------------------------------------------------- actions

    def _try(self) -> None:
        if not may("rules"):
            return
        copy, days, warm_up = self._editor.value or "", float(self._days.value), float(self._warm_up.value)
        settings, now = self._desk.settings, time.time()

        def prepared(folder: Path) -> Any:
            ruleset, mistakes = self._desk.rules.examine(copy.encode())
            if ruleset is None:
                raise UserError(mistakes[0].text)
            return arguments(settings, copy, folder, now, days, warm_up)

        try:
            self._desk.programs.start(BACKTEST, self._session.analyst, "The backtest", MODULE, prepared)
        except UserError as error:
            ui.notify(shown(error), color="warning")

    def _stop(self) -> None:
        if may("rules"):
            self._desk.programs.stop()

    async def _shadow(self) -> None:
        if not may("rules"):
            return
        copy, who, why = self._editor.value or "", self._session.analyst, self._reason.value or ""
        await self._put(
            lambda seen: self._desk.rules.try_in_shadow(copy, seen, who, why),
            "In shadow: a running flow evaluates and counts it, and no verdict changes.",
        )

    async def _promote(self) -> None:
        if not may("rules"):
            return
        copy, who, why = self._editor.value or "", self._session.analyst, self._reason.value or ""
        await self._put(
            lambda seen: (self._desk.rules.write(copy.encode(), seen, "promote", who, why), []),
            "Promoted: a running flow takes it up by itself.",
        )

    async def _go_back(self, number: int) -> None:
        if not may("rules") or self._version is None:
            return
        who = self._session.analyst
        self._base = self._version.digest  # whoever goes back has the newest version before them
        await self._put(lambda seen: (self._desk.rules.go_back(number, seen, who), []), f"Back to version {number}.")

    async def _put(self, change: Callable[[str], tuple[Version, list[str]]], done: str) -> None:
        """Writes the file; where it has changed since the copy was begun, only once the analyst has said so."""
        try:
            version, untried = await asyncio.to_thread(change, self._base)
        except ChangedMeanwhileError as error:
            if await self._ask(error):
                self._base = error.now.digest
                await self._put(change, done)
            return
        except UserError as error:
            ui.notify(shown(error), color="negative", multi_line=True, timeout=10_000)
            return
        self._base = version.digest
        self._reason.set_value("")
        self._typed = time.monotonic()
        ui.notify(shown(" ".join([done, *(f"{each}." for each in untried)])), color="positive", multi_line=True)

    async def _ask(self, error: ChangedMeanwhileError) -> bool:
        with ui.dialog() as dialog, ui.card():
            text(f"{error}. Your copy was begun before that.")
            plain_table(
                "the change", ("", ""), [("when", moment(error.now.at)), ("by", error.now.who)], frozenset({0, 1})
            )
            with ui.element("div").classes("bar-of-tools"):
                ui.button("Write over it", on_click=lambda: dialog.submit(True)).props("color=negative")
                ui.button("Leave it", on_click=lambda: dialog.submit(False)).props("outline")
        answer = await dialog
        dialog.delete()
        return bool(answer)


def _in_words(path: Path, version: Version | None, ruleset: str) -> str:
    if version is None:
        return f"{path} was not read yet."
    by = "" if version.what == "file" else f" by {version.who}"
    named = f", ruleset_version {ruleset}" if ruleset else ", which no flow takes: it has mistakes"
    return (
        f"In service: version {version.number} of {path}{named}; {IN_WORDS[version.what]}{by}, "
        f"{moment(version.at)} UTC: {version.reason}"
    )
