"""The rules file: read, checked, and made into a ruleset; every mistake is told in a line that says where it is."""

import hashlib
import json
import keyword
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataflow.errors import UserError
from dataflow.events.decision import Action
from dataflow.rules.fields import KINDS
from dataflow.rules.language import Condition, RuleError, read_condition, suggestion
from dataflow.rules.lists import ListFiles, Pause, no_pause, read_regular
from dataflow.rules.reasons import parse_reason
from dataflow.rules.ruleset import Effect, Rule, RuleSet
from dataflow.rules.text_form import caseless, comparable

MAX_RULES = 1000
MAX_COOLDOWN = 30 * 86_400.0
_RULE_KEYS = ("id", "when", "reason", "weight", "mode", "cooldown", "action")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_LIST_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_COOLDOWN = re.compile(r"([0-9]{1,7})([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_MODES: dict[str, Effect | Literal["off"]] = {"active": "active", "shadow": "shadow", "off": "off"}


def load_rules(path: Path, files: ListFiles | None = None, pause: Pause = no_pause) -> RuleSet:
    """Reads, checks and compiles a rules file and the lists that it names, with a `pause` after each step.

    Raises:
        UserError: with the file, the rule, the column and what to do; nothing of a bad file is used.
    """
    rules, mistakes = examine(path, files, pause)
    if rules is None:
        more = f" (and {len(mistakes) - 1} more: python -m dataflow.rules check {path})" if len(mistakes) > 1 else ""
        raise UserError(mistakes[0] + more)
    return rules


def examine(path: Path, files: ListFiles | None = None, pause: Pause = no_pause) -> tuple[RuleSet | None, list[str]]:
    """The ruleset of a file, or None and each mistake in it, one line each, as far as several can be told apart."""
    files = files or ListFiles()
    files.begin()
    mistakes = _Mistakes()
    with mistakes:
        content = read_regular(path)
        data = _toml(path, content)
    if mistakes:
        return None, mistakes
    with mistakes:
        _known_keys(path, "the file", data, ("lists", "allow", "deny", "rule"))
    lists, digest = _load_lists(path, data.get("lists", {}), files, mistakes, pause)
    caseless_lists = {name for name, each in lists.items() if each.ignore_case}
    rules: list[Rule] = []
    effects: tuple[Effect, ...] = ("deny", "allow")
    for effect in effects:
        with mistakes:
            for entry in _tables(path, data, effect):
                with mistakes:
                    rules.append(_list_rule(path, lists, effect, entry))
    with mistakes:
        for number, entry in enumerate(_tables(path, data, "rule"), 1):
            with mistakes:
                rules.append(_rule(path, number, entry))
    if len(rules) > MAX_RULES:
        return None, [*mistakes, f"{path}: {len(rules)} rules, {MAX_RULES} are allowed"]
    if not rules and not mistakes:
        # A file that was emptied, or is only half written: it would let everything pass.
        mistakes.append(f'{path}: there is no rule in it: add a [[rule]]; one can be turned off with mode = "off"')
    conditions: list[Condition] = []
    seen: set[str] = set()
    for rule in rules:
        with mistakes:
            if rule.id in seen:
                msg = f"{path}: rule {rule.id!r} stands twice: ids must differ"
                raise UserError(msg)
        seen.add(rule.id)
        with mistakes, _located(path, rule.id, "when", rule.when):
            conditions.append(read_condition(rule.when, KINDS, lists, caseless_lists))
        with mistakes, _located(path, rule.id, "reason", rule.reason):
            parse_reason(rule.reason)
        pause()
    if mistakes:
        return None, mistakes
    version = hashlib.sha256(content + b"\0" + digest).hexdigest()[:12]
    entries = {name: each.entries for name, each in lists.items()}
    return RuleSet(rules, conditions, entries, version, tuple(files.asked), pause), []


class _Mistakes(list[str]):
    """Notes a user's mistake inside `with` and goes on behind it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, UserError):
            self.append(str(error))
        return isinstance(error, UserError)


@contextmanager
def _located(path: Path, rule: str, key: str, text: str) -> Iterator[None]:
    """Says where in the file a mistake in the language is."""
    try:
        yield
    except RuleError as error:
        before = text[: error.column - 1]
        line = f"line {before.count(chr(10)) + 1}, " if "\n" in text.rstrip() else ""
        column = len(before) - before.rfind("\n")
        msg = f"{path}: rule {rule!r}, {key}, {line}column {column}: {error}"
        raise UserError(msg) from None


def _toml(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        msg = f"{path}: not a TOML file: {str(error).splitlines()[0]}"
        raise UserError(msg) from None


class _List(NamedTuple):
    """A list that the file names; its entries are comparable, and caseless where the case is ignored."""

    entries: AbstractSet[str] = frozenset()
    ignore_case: bool = False


def _load_lists(
    path: Path, table: Any, files: ListFiles, mistakes: _Mistakes, pause: Pause
) -> tuple[dict[str, _List], bytes]:
    """The lists, and a digest of their files; one with a mistake is there, but empty."""
    lists: dict[str, _List] = {}
    digest = hashlib.sha256()
    with mistakes:
        if not isinstance(table, dict):
            msg = f'{path}: [lists] must be a table of NAME = "FILE" or NAME = ["ENTRY", ...]'
            raise UserError(msg)
        for name, source in sorted(table.items()):
            lists[name] = _List()
            with mistakes:
                if not _LIST_NAME.fullmatch(name) or keyword.iskeyword(name):
                    msg = f"{path}: list {name!r}: a name has letters, digits and '_' only"
                    raise UserError(msg)
                given = _list_table(path, name, source)
                ignore_case = given.get("case") == "ignore"
                if "file" in given:
                    read = files.read(path.parent / given["file"], ignore_case, pause)
                    entries = read.entries
                    digest.update(read.digest)
                else:
                    inline = comparable(given["entries"])
                    entries = frozenset(map(caseless, inline) if ignore_case else inline)
                if not entries and not given.get("may_be_empty", False):
                    raise UserError(_emptied(path, name, given))
                lists[name] = _List(entries, ignore_case)
    return lists, digest.digest()


def _list_table(path: Path, name: str, source: Any) -> dict[str, Any]:
    """What the file says of a list, checked, in the long form: a file or entries, and how to take them."""
    what = f"list {name!r}"
    if isinstance(source, str):
        return {"file": source}
    table = source if isinstance(source, dict) else {"entries": source}
    _known_keys(path, what, table, ("file", "entries", "may_be_empty", "case"))
    entries = table.get("entries", [])
    if (
        ("file" in table) == ("entries" in table)
        or not isinstance(table.get("file", ""), str)
        or not isinstance(entries, list)
        or not all(isinstance(entry, str) for entry in entries)
    ):
        msg = (
            f"{path}: {what} must be the name of a file, or entries in brackets, each a text; "
            'or {file = "FILE"} or {entries = ["ENTRY", ...]}, with may_be_empty and case beside it'
        )
        raise UserError(msg)
    if not isinstance(table.get("may_be_empty", False), bool):
        msg = f"{path}: {what}: may_be_empty = {_brief(table['may_be_empty'])} is wrong: it takes true or false"
        raise UserError(msg)
    if table.get("case", "exact") not in ("exact", "ignore"):
        msg = f'{path}: {what}: case = {_brief(table["case"])} is wrong: it takes "exact" or "ignore"'
        raise UserError(msg)
    return table


def _emptied(path: Path, name: str, given: dict[str, Any]) -> str:
    """Tells of a list without entries: one that was emptied by mistake, or half written, would let everything pass."""
    if "file" in given:
        where, form = (
            f" in {str(path.parent / given['file'])!r}",
            f"file = {json.dumps(given['file'], ensure_ascii=False)}",
        )
    else:
        where, form = "", "entries = []"
    form += ', case = "ignore"' if given.get("case") == "ignore" else ""
    advice = f"add one, or say that it may be empty: {name} = {{{form}, may_be_empty = true}}"
    return f"{path}: list {name!r} has no entry{where}: {advice}"


def _tables(path: Path, data: dict[str, Any], name: str) -> Iterable[dict[str, Any]]:
    tables = data.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        msg = f"{path}: {name!r} must be written as [[{name}]]"
        raise UserError(msg)
    return tables


def _known_keys(path: Path, what: str, table: dict[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            advice = suggestion(key, known) or ": known are " + ", ".join(known)
            msg = f"{path}: {what} has an unknown key {key!r}{advice}"
            raise UserError(msg)


def _text(path: Path, what: str, table: dict[str, Any], key: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not value.strip():
        msg = f"{path}: {what}: {key!r} is missing or no text"
        raise UserError(msg)
    return value


def _list_rule(path: Path, lists: Mapping[str, _List], effect: Effect, table: dict[str, Any]) -> Rule:
    what = f"[[{effect}]]"
    _known_keys(path, what, table, ("field", "list", "reason", *(("action",) if effect == "deny" else ())))
    field, name = _text(path, what, table, "field"), _text(path, what, table, "list")
    if name not in lists:
        msg = f"{path}: {what}: there is no list {name!r}{suggestion(name, lists)}: name it under [lists]"
        raise UserError(msg)
    if KINDS.get(field) != "text":
        texts = [known for known, kind in KINDS.items() if kind == "text"]
        msg = f"{path}: {what}: field = {field!r} is wrong: it takes {', '.join(texts)}"
        raise UserError(msg)
    reason = _text(path, what, table, "reason", f"{field} {{{field}}} on {name}")
    action: Action = _action(path, what, table, "block") if effect == "deny" else "approve"
    when, weight = f"{field} in lists.{name}", float(effect == "deny")
    return Rule(f"{effect}_{name}_{field}", when, reason, weight, effect, 0.0, action)


def _rule(path: Path, number: int, table: dict[str, Any]) -> Rule:
    what = f"rule {table['id']!r}" if isinstance(table.get("id"), str) else f"rule number {number}"
    _known_keys(path, what, table, _RULE_KEYS)
    name = _text(path, what, table, "id")
    if not _ID.fullmatch(name):
        msg = f"{path}: {what}: an id has up to 64 letters, digits, '_' and '-', and begins with a letter"
        raise UserError(msg)
    weight = table.get("weight", 0.5)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        msg = f"{path}: {what}: weight = {_brief(weight)} is wrong: it takes a number from 0 to 1"
        raise UserError(msg)
    mode = table.get("mode", "active")
    effect = _MODES.get(mode) if isinstance(mode, str) else None
    if effect is None:
        msg = f"{path}: {what}: mode = {_brief(mode)} is wrong: it takes {', '.join(_MODES)}"
        raise UserError(msg)
    cooldown = table.get("cooldown", "0s")
    match = _COOLDOWN.fullmatch(cooldown) if isinstance(cooldown, str) else None
    if match is None:
        msg = f'{path}: {what}: cooldown = {_brief(cooldown)} is wrong: it takes a number and s, m, h or d, as in "10m"'
        raise UserError(msg)
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > MAX_COOLDOWN:
        msg = f"{path}: {what}: cooldown = {cooldown!r} is wrong: it takes at most {MAX_COOLDOWN / 86_400:g}d"
        raise UserError(msg)
    action = _action(path, what, table, "review")
    when, reason = _text(path, what, table, "when"), _text(path, what, table, "reason")
    return Rule(name, when, reason, float(weight), effect, seconds, action)


def _action(path: Path, what: str, table: dict[str, Any], default: Action) -> Action:
    action = table.get("action", default)
    if action == "review":
        return "review"
    if action == "block":
        return "block"
    msg = f'{path}: {what}: action = {_brief(action)} is wrong: it takes "review" or "block"'
    raise UserError(msg)


def _brief(value: Any) -> str:
    """A value as a message quotes it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a very large number"
    return text if len(text) <= 60 else text[:57] + "..."
