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
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from dataflow.errors import UserError, in_words
from dataflow.events.decision import Action
from dataflow.rules.fields import KINDS
from dataflow.rules.language import Condition, RuleError, read_condition, suggestion
from dataflow.rules.lists import ListFiles, Pause, no_pause, read_regular
from dataflow.rules.reasons import parse_reason
from dataflow.rules.ruleset import Effect, Rule, RuleSet
from dataflow.rules.text_form import caseless, comparable

MAX_RULES = 1000
MAX_COOLDOWN = 30 * 86_400.0
_LIST_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Text = Annotated[str, Meta(pattern=r"\S", description="a text")]
RuleId = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z][A-Za-z0-9_-]{0,63}\Z",
        description="a letter, and up to 63 letters, digits, '_' and '-' behind it",
    ),
]
Cooldown = Annotated[
    str,
    Meta(pattern=r"\A[0-9]{1,7}[smhd]\Z", description='a number and s, m, h or d, as in "10m"'),
]
OfAlert = Annotated[Literal["review", "block"], Meta(description='"review" or "block"')]


class _RuleTable(msgspec.Struct):
    """A [[rule]] as the file has it."""

    id: RuleId
    when: Text
    reason: Text
    weight: Annotated[float, Meta(ge=0, le=1)] = 0.5
    mode: Annotated[Literal["active", "shadow", "off"], Meta(description="active, shadow, off")] = "active"
    cooldown: Cooldown = "0s"
    action: OfAlert = "review"


class _AllowTable(msgspec.Struct):
    """An [[allow]]."""

    field: Text
    list: Text
    reason: Text | None = None


class _DenyTable(_AllowTable):
    """A [[deny]]."""

    action: OfAlert = "block"


class _ListTable(msgspec.Struct):
    """A list in its long form: a file or entries, and how to take them."""

    file: Annotated[str, Meta(description="the name of a file")] | None = None
    entries: Annotated[list[str], Meta(description='["ENTRY", ...], each entry a text')] | None = None
    may_be_empty: Annotated[bool, Meta(description="true or false")] = False
    case: Annotated[Literal["exact", "ignore"], Meta(description='"exact" or "ignore"')] = "exact"


_Table = TypeVar("_Table", _RuleTable, _AllowTable, _DenyTable, _ListTable)


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


def examine(
    path: Path, files: ListFiles | None = None, pause: Pause = no_pause, content: bytes | None = None
) -> tuple[RuleSet | None, list[str]]:
    """The ruleset of a file, or None and each mistake in it, one line each, as far as several can be told apart.

    `content`: what shall stand in the file, instead of what does; lists are found beside the file all the same.
    """
    files = files or ListFiles()
    files.begin()
    mistakes = _Mistakes()
    with mistakes:
        if content is None:
            content = read_regular(path)
        data = _toml(path, content)
    if mistakes or content is None:
        return None, mistakes
    mistakes += _unknown_keys(path, "the file", data, ("lists", "allow", "deny", "rule"))
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
            self += str(error).split("\n")
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
                ignore_case = given.case == "ignore"
                if given.file is not None:
                    read = files.read(path.parent / given.file, ignore_case, pause)
                    entries = read.entries
                    digest.update(read.digest)
                else:
                    inline = comparable(given.entries or [])
                    entries = frozenset(map(caseless, inline) if ignore_case else inline)
                if not entries and not given.may_be_empty:
                    raise UserError(_emptied(path, name, given))
                lists[name] = _List(entries, ignore_case)
    return lists, digest.digest()


def _list_table(path: Path, name: str, source: Any) -> _ListTable:
    """What the file says of a list, checked, in the long form."""
    given = _ListTable()
    if isinstance(source, dict):
        given = _read_table(_ListTable, path, f"list {name!r}", source)
    elif isinstance(source, str):
        given.file = source
    elif isinstance(source, list) and all(isinstance(entry, str) for entry in source):
        given.entries = source
    if (given.file is None) == (given.entries is None):
        msg = (
            f"{path}: list {name!r} must be the name of a file, or entries in brackets, each a text; "
            'or {file = "FILE"} or {entries = ["ENTRY", ...]}, with may_be_empty and case beside it'
        )
        raise UserError(msg)
    return given


def _emptied(path: Path, name: str, given: _ListTable) -> str:
    """Tells of a list without entries: one that was emptied by mistake, or half written, would let everything pass."""
    where, form = "", "entries = []"
    if given.file is not None:
        where = f" in {str(path.parent / given.file)!r}"
        form = f"file = {json.dumps(given.file, ensure_ascii=False)}"
    form += ', case = "ignore"' if given.case == "ignore" else ""
    advice = f"add one, or say that it may be empty: {name} = {{{form}, may_be_empty = true}}"
    return f"{path}: list {name!r} has no entry{where}: {advice}"


def _tables(path: Path, data: dict[str, Any], name: str) -> Iterable[dict[str, Any]]:
    try:
        return msgspec.convert(data.get(name, []), list[dict[str, Any]])
    except msgspec.ValidationError:
        msg = f"{path}: {name!r} must be written as [[{name}]]"
        raise UserError(msg) from None


def _read_table(kind: type[_Table], path: Path, what: str, table: Mapping[str, Any]) -> _Table:
    """A table of the file, with the types of `kind`.

    Raises:
        UserError: with a line for each key that is unknown, missing or wrong.
    """
    fields = msgspec.structs.fields(kind)
    mistakes = _unknown_keys(path, what, table, [field.name for field in fields])
    values = {}
    for field in fields:
        if field.name not in table:
            if field.required:
                mistakes.append(f"{path}: {what}: {field.name!r} is missing: it takes {in_words(field.type)}")
            continue
        value = table[field.name]
        try:
            values[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError:
            takes = in_words(field.type)
            mistakes.append(f"{path}: {what}: {field.name} = {_brief(value)} is wrong: it takes {takes}")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return kind(**values)


def _unknown_keys(path: Path, what: str, table: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    return [
        f"{path}: {what} has an unknown key {key!r}{suggestion(key, known) or ': known are ' + ', '.join(known)}"
        for key in table
        if key not in known
    ]


def _list_rule(path: Path, lists: Mapping[str, _List], effect: Effect, table: dict[str, Any]) -> Rule:
    what = f"[[{effect}]]"
    given = _read_table(_DenyTable if effect == "deny" else _AllowTable, path, what, table)
    field, name = given.field, given.list
    if name not in lists:
        msg = f"{path}: {what}: there is no list {name!r}{suggestion(name, lists)}: name it under [lists]"
        raise UserError(msg)
    if KINDS.get(field) != "text":
        texts = [known for known, kind in KINDS.items() if kind == "text"]
        msg = f"{path}: {what}: field = {field!r} is wrong: it takes {', '.join(texts)}"
        raise UserError(msg)
    reason = given.reason or f"{field} {{{field}}} on {name}"
    action: Action = given.action if isinstance(given, _DenyTable) else "approve"
    when, weight = f"{field} in lists.{name}", float(effect == "deny")
    return Rule(f"{effect}_{name}_{field}", when, reason, weight, effect, 0.0, action)


def _rule(path: Path, number: int, table: dict[str, Any]) -> Rule:
    what = f"rule {table['id']!r}" if isinstance(table.get("id"), str) else f"rule number {number}"
    given = _read_table(_RuleTable, path, what, table)
    cooldown = int(given.cooldown[:-1]) * _UNITS[given.cooldown[-1]]
    if cooldown > MAX_COOLDOWN:
        most = f"{MAX_COOLDOWN / _UNITS['d']:g}d"
        msg = f"{path}: {what}: cooldown = {given.cooldown!r} is wrong: it takes at most {most}"
        raise UserError(msg)
    return Rule(given.id, given.when, given.reason, given.weight, given.mode, cooldown, given.action)


def _brief(value: Any) -> str:
    """A value as a message quotes it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a very large number"
    return text if len(text) <= 60 else text[:57] + "..."
