"""Rules as data: the file, its checks, and the ruleset that is compiled from it.

`python -m dataflow.rules check FILE` checks a file, `python -m dataflow.rules fields` lists what a rule may read.
"""

import hashlib
import json
import keyword
import math
import re
import string
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataflow.features import FIELDS, Facts
from dataflow.operating_point import MODEL_FIELDS
from dataflow.rule_language import NAMESPACE, Compiled, Kind, RuleError, compile_condition, suggestion
from dataflow.rule_lists import ListFiles, Pause, no_pause, read_regular
from dataflow.settings import UserError
from dataflow.table import Table
from dataflow.text_form import caseless, comparable

ALL_FIELDS = (*FIELDS, *MODEL_FIELDS)
"""What a rule may read: the columns of the rows that are evaluated."""

MAX_RULES = 1000
MAX_COOLDOWN = 30 * 86_400.0
STEP_CHARACTERS = 8_000
"""Of code that are compiled at once, unless a single rule's is longer.

Python's compiler lets no other thread run meanwhile: a running flow stands still for about 1 ms per 2,000 characters.
"""
_RULE_KEYS = ("id", "when", "reason", "weight", "mode", "cooldown", "action")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_LIST_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_COOLDOWN = re.compile(r"([0-9]{1,7})([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_CACHED_OUTCOMES = 4096
# Those of the model from the end, where they are after the facts of basic profiles too, which are fewer.
_COLUMNS = {
    **{field.name: column for column, field in enumerate(FIELDS)},
    **{field.name: column - len(MODEL_FIELDS) for column, field in enumerate(MODEL_FIELDS)},
}
NUMBER_OF: dict[str, int] = {field.name: number for number, field in enumerate(ALL_FIELDS)}
"""Where each field stands among all."""
_KINDS: dict[str, Kind] = {field.name: field.kind for field in ALL_FIELDS}

Effect = Literal["deny", "allow", "active", "shadow"]
Action = Literal["approve", "review", "block"]
Cooldowns = tuple[tuple[str, float], ...]


_MODES: dict[str, Effect | Literal["off"]] = {"active": "active", "shadow": "shadow", "off": "off"}


class Rule(NamedTuple):
    """One rule of the file, or one line of its allow and deny tables."""

    id: str
    when: str
    reason: str
    weight: float
    effect: Effect | Literal["off"]
    cooldown: float  # seconds; 0 without one
    action: Action = "review"  # what an alert of it asks for; of an allow list "approve"


class Outcome(NamedTuple):
    """What the rules say of a transaction; its lists are shared between transactions and never changed."""

    fraudulent: bool
    reasons: list[str]
    rules: list[str]  # ids of the active rules, and of the lists, that fired
    shadow_rules: list[str]
    doubt: float  # product of 1 - weight over the active rules that fired: the score is 1 - doubt * (1 - the model's)
    cooldowns: Cooldowns  # of an alert: id and seconds of each rule that made it; empty where none has a cooldown
    action: Action = "approve"  # of an alert the strictest of what made it, "review" or "block"


class _Template(NamedTuple):
    """Outcome of one combination of rules; what differs between transactions is filled in."""

    outcome: Outcome
    placeholders: list[tuple[int, str, tuple[str, ...]]]  # which reason, its format, the fields it takes
    fired: list[Rule]


class _Rows:
    """Rows as a table; those of basic profiles too, which hold fewer facts."""

    def __init__(self, rows: Sequence[Facts]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Any]:
        place = _COLUMNS[name]
        return [row[place] for row in self._rows]


class _Piece(NamedTuple):
    """Some of the conditions as one function: for each row, it adds to the row's mask the bits of those that hold."""

    match: Callable[[Iterable[tuple[Any, ...]], list[int]], None]
    reads: list[str]  # the fields that the function takes of each row, behind the row's number


class RuleSet:
    """The rules of one file, compiled to a few functions.

    `version` is a digest of the file and of the lists that it names: the same version decides the same way. `count`,
    where it is set, hears once a batch how often each rule fired; `count_actions` how many decisions asked for each
    action.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        compiled: Sequence[Compiled],
        lists: Mapping[str, AbstractSet[str]],
        version: str,
        files: tuple[Path, ...] = (),
        pause: Pause = no_pause,
    ):
        """Compiles the rules, with a `pause` after each step."""
        self.rules = tuple(rules)
        self.reads = tuple(code.fields for code in compiled)  # the fields that each rule reads
        self.version = version
        self.files = files  # of the lists
        self.lists = lists
        self.count: Callable[[Rule, int], None] | None = None
        self.count_actions: Callable[[Action, int], None] | None = None
        live = [(rule, code) for rule, code in zip(rules, compiled, strict=True) if rule.effect != "off"]
        self._live = [rule for rule, _ in live]
        shown = {name for rule, _ in live for name in _reason_format(rule.reason)[1]}
        self.fields = frozenset(shown.union(*(code.fields for _, code in live)))
        """What is read by the rules that are not off, and by their reasons."""
        self._used = sorted({name for _, code in live for name in code.fields})
        self._used_texts = [name for name in self._used if _KINDS[name] == "text"]
        self._pieces = _compile([code for _, code in live], lists, pause)
        self._quiet = Outcome(False, [], [], [], 1.0, ())
        self._templates: dict[int, _Template] = {}

    def evaluate(self, facts: Table | Sequence[Facts]) -> list[Outcome]:
        """What the rules say of each transaction of a table, or of rows in the order of `ALL_FIELDS`; never raises.

        With basic profiles there are the basic facts alone, and the model's; the rules must then read no others.
        """
        table = facts if isinstance(facts, Table) else _Rows(facts)
        masks = self._match(table)
        outcomes = [self._quiet] * len(masks)
        if not any(masks):
            if self.count_actions is not None and masks:
                self.count_actions("approve", len(masks))
            return outcomes
        templates = self._templates
        hits: dict[int, int] = {}
        for place, mask in enumerate(masks):
            if not mask:
                continue
            hits[mask] = hits.get(mask, 0) + 1
            template = templates.get(mask)
            if template is None:
                template = self._template(mask)
            outcome = template.outcome
            if template.placeholders:
                reasons = outcome.reasons.copy()
                for number, form, names in template.placeholders:
                    reasons[number] = form.format(*[_shown(table.column(name)[place]) for name in names])
                outcome = outcome._replace(reasons=reasons)
            outcomes[place] = outcome
        if self.count is not None:
            for mask, times in hits.items():
                for rule in (templates.get(mask) or self._template(mask)).fired:
                    self.count(rule, times)
        if self.count_actions is not None:
            actions: dict[Action, int] = {"approve": len(masks) - sum(hits.values())}
            for mask, times in hits.items():
                action = (templates.get(mask) or self._template(mask)).outcome.action
                actions[action] = actions.get(action, 0) + times
            for action, times in actions.items():
                self.count_actions(action, times)
        return outcomes

    def matches(self, rows: Sequence[Facts]) -> list[int]:
        """How many of the rows meet the condition of each rule, in the order of `rules`; 0 for one that is off."""
        masks = self._match(_Rows(rows))
        counts = iter([sum(mask >> bit & 1 for mask in masks) for bit in range(len(self._live))])
        return [next(counts) if rule.effect != "off" else 0 for rule in self.rules]

    def _match(self, table: Table | _Rows) -> list[int]:
        columns = {name: table.column(name) for name in self._used}
        for name in self._used_texts:
            columns[name] = comparable(columns[name])
        masks = [0] * len(table)
        numbers = range(len(table))
        for piece in self._pieces:
            piece.match(zip(numbers, *[columns[name] for name in piece.reads], strict=True), masks)
        return masks

    def _template(self, mask: int) -> _Template:
        fired: dict[Effect, list[Rule]] = {"deny": [], "allow": [], "active": [], "shadow": []}
        for bit, rule in enumerate(self._live):
            if mask >> bit & 1 and rule.effect != "off":
                fired[rule.effect].append(rule)
        deny, allow, active, shadow = fired.values()
        # A deny list wins over all, an allow list over the rules; each leaves its reason.
        accused = deny + active if deny or not allow else []
        reasons, placeholders = [], []
        for place, rule in enumerate(accused or allow):
            form, names = _reason_format(rule.reason)
            reasons.append("" if names else form.format())
            if names:
                placeholders.append((place, form, names))
        cooldowns = tuple((rule.id, rule.cooldown) for rule in accused)
        actions = {rule.action for rule in accused}
        template = _Template(
            Outcome(
                fraudulent=bool(accused),
                reasons=reasons,
                rules=[rule.id for rule in (*deny, *allow, *active)],
                shadow_rules=[rule.id for rule in shadow],
                doubt=math.prod(1 - rule.weight for rule in accused),
                cooldowns=cooldowns if any(seconds for _, seconds in cooldowns) else (),
                action="block" if "block" in actions else "review" if accused else "approve",
            ),
            placeholders,
            deny + allow + active + shadow,
        )
        if len(self._templates) >= _CACHED_OUTCOMES:
            self._templates.clear()
        self._templates[mask] = template
        return template


def _compile(conditions: Sequence[Compiled], lists: Mapping[str, AbstractSet[str]], pause: Pause) -> list[_Piece]:
    """The conditions as functions, each of as many as are compiled in one step."""
    pieces: list[_Piece] = []
    step: list[Compiled] = []
    characters = 0
    for bit, condition in enumerate(conditions):
        own = sum(map(len, _branch(condition, len(step))))
        if step and characters + own > STEP_CHARACTERS:
            pieces.append(_compile_step(step, bit - len(step), lists))
            pause()
            step, characters = [], 0
        step.append(condition)
        characters += own
    if step:
        pieces.append(_compile_step(step, len(conditions) - len(step), lists))
        pause()
    return pieces


def _compile_step(conditions: Sequence[Compiled], first: int, lists: Mapping[str, AbstractSet[str]]) -> _Piece:
    """One function of some conditions, the first of which has the bit number `first`."""
    reads = sorted({name for condition in conditions for name in condition.fields})
    named = sorted({name for condition in conditions for name in condition.lists})
    lines = ["", f"    for number, {''.join(f'f_{name}, ' for name in reads)}in rows:", "        mask = 0"]
    for bit, condition in enumerate(conditions):
        lines += _branch(condition, bit)
    lines += ["        if mask:", f"            masks[number] |= mask << {first}"]
    # Lists and functions as arguments with defaults: a local variable is read faster than a global one.
    local = [name for name in NAMESPACE if name != "__builtins__"] + [f"l_{name}" for name in named]
    lines[0] = f"def match(rows, masks, {', '.join(f'{name}={name}' for name in local)}):"
    namespace = {**NAMESPACE, **{f"l_{name}": lists[name] for name in named}}
    # The source is our own: names of fields and functions that we know, and constants in Python's own notation.
    exec(compile("\n".join(lines), "<rules>", "exec"), namespace)  # noqa: S102
    return _Piece(namespace["match"], reads)


def _branch(condition: Compiled, bit: int) -> list[str]:
    return [f"        if {condition.source}:", f"            mask |= {1 << bit}"]


def _shown(value: float | str | bool) -> str:
    """A value as a reason shows it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return "unknown"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:g}"
    return "0" if text == "-0" else text


def _reason_format(reason: str) -> tuple[str, tuple[str, ...]]:
    """A reason as a format with bare `{}`, and the fields that fill it.

    Raises:
        RuleError: it is no format, or names a field that does not exist.
    """
    form, used = [], []
    try:
        pieces = list(string.Formatter().parse(reason))
    except ValueError as error:
        msg = f"{error} (a brace that is meant as one is written twice)"
        raise RuleError(msg) from None
    for text, name, spec, conversion in pieces:
        form.append(text.replace("{", "{{").replace("}", "}}"))
        if name is None:
            continue
        column = reason.find("{" + name) + 2
        if name not in _COLUMNS:
            msg = f"there is no field {name!r}{suggestion(name, _COLUMNS)}"
            raise RuleError(msg, column)
        if spec or conversion:
            msg = f"{{{name}}} takes no format"
            raise RuleError(msg, column)
        form.append("{}")
        used.append(name)
    return "".join(form), tuple(used)


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
    compiled: list[Compiled] = []
    seen: set[str] = set()
    for rule in rules:
        with mistakes:
            if rule.id in seen:
                msg = f"{path}: rule {rule.id!r} stands twice: ids must differ"
                raise UserError(msg)
        seen.add(rule.id)
        with mistakes, _located(path, rule.id, "when", rule.when):
            compiled.append(compile_condition(rule.when, _KINDS, lists, caseless_lists))
        with mistakes, _located(path, rule.id, "reason", rule.reason):
            _reason_format(rule.reason)
        pause()
    if mistakes:
        return None, mistakes
    version = hashlib.sha256(content + b"\0" + digest).hexdigest()[:12]
    entries = {name: each.entries for name, each in lists.items()}
    return RuleSet(rules, compiled, entries, version, tuple(files.asked), pause), []


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
    if _KINDS.get(field) != "text":
        texts = [known for known, kind in _KINDS.items() if kind == "text"]
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


if __name__ == "__main__":
    import sys

    from dataflow.rules_check import main

    sys.exit(main())
