"""Rules as data: the file, its checks, and the ruleset that is compiled from it.

`python -m dataflow.rules check FILE` checks a file, `python -m dataflow.rules fields` lists what a rule may read.
"""

import hashlib
import math
import re
import string
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataflow.features import FIELDS, Facts, Field
from dataflow.rule_language import NAMESPACE, Compiled, Kind, RuleError, compile_condition, suggestion
from dataflow.settings import UserError

MODEL_FIELDS = (
    Field("model_anomaly", "flag", "the Isolation Forest calls it an outlier, as its predict == -1 does"),
    Field("model_score", "number", "the model's risk, 0 to 1"),
)
"""What the scoring step appends to the facts."""

MAX_RULES = 1000
_MODES = ("active", "shadow", "off")
_RULE_KEYS = ("id", "when", "reason", "weight", "mode", "cooldown")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_COOLDOWN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_CACHED_OUTCOMES = 4096

Effect = Literal["deny", "allow", "active", "shadow"]


class Rule(NamedTuple):
    """One rule of the file, or one line of its allow and deny tables."""

    id: str
    when: str
    reason: str
    weight: float
    effect: Effect | Literal["off"]
    cooldown: float  # seconds; 0 without one


class Outcome(NamedTuple):
    """What the rules say of a transaction."""

    fraudulent: bool
    reasons: list[str]
    rules: list[str]  # ids of the active rules, and of the lists, that fired
    shadow_rules: list[str]
    doubt: float  # product of 1 - weight over the active rules that fired: the score is 1 - doubt * (1 - the model's)


class _Template(NamedTuple):
    """Outcome of one combination of rules; what differs between transactions is filled in."""

    fraudulent: bool
    reasons: list[str]
    placeholders: list[tuple[int, str, tuple[int, ...]]]  # which reason, its format, the columns it takes
    rules: list[str]
    shadow_rules: list[str]
    doubt: float


class RuleSet:
    """The rules of one file, compiled to one function.

    `version` is a digest of the file and of the lists that it names: the same version decides the same way.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        compiled: Sequence[Compiled],
        lists: dict[str, frozenset[str]],
        version: str,
        files: tuple[Path, ...],
    ):
        self.rules = tuple(rules)
        self.version = version
        self.files = files  # of the lists
        self.lists = lists
        self.cooldowns = {rule.id: rule.cooldown for rule in rules if rule.cooldown}
        self._live = [rule for rule in rules if rule.effect != "off"]
        self._match = _compile(
            [code for rule, code in zip(rules, compiled, strict=True) if rule.effect != "off"], lists
        )
        self._templates: dict[int, _Template] = {}

    def evaluate(self, rows: Sequence[Facts]) -> list[Outcome]:
        """What the rules say of each row: the facts of `FIELDS`, then those of `MODEL_FIELDS`; never raises."""
        templates = self._templates
        outcomes = []
        for mask, row in zip(self._match(rows), rows, strict=True):
            template = templates.get(mask)
            if template is None:
                template = self._template(mask)
            reasons = template.reasons
            if template.placeholders:
                reasons = reasons.copy()
                for place, form, columns in template.placeholders:
                    reasons[place] = form.format(*[_shown(row[column]) for column in columns])
            outcomes.append(
                Outcome(template.fraudulent, reasons, template.rules, template.shadow_rules, template.doubt)
            )
        return outcomes

    def _template(self, mask: int) -> _Template:
        fired: dict[Effect, list[Rule]] = {"deny": [], "allow": [], "active": [], "shadow": []}
        for bit, rule in enumerate(self._live):
            if mask >> bit & 1 and rule.effect != "off":
                fired[rule.effect].append(rule)
        said = fired["deny"] + fired["active"] if fired["deny"] else fired["allow"] or fired["active"]
        reasons, placeholders = [], []
        for place, rule in enumerate(said):
            form, columns = _reason_format(rule.reason)
            reasons.append("" if columns else form.format())
            if columns:
                placeholders.append((place, form, columns))
        template = _Template(
            fraudulent=bool(fired["deny"]) or (bool(fired["active"]) and not fired["allow"]),
            reasons=reasons,
            placeholders=placeholders,
            rules=[rule.id for rule in (*fired["deny"], *fired["allow"], *fired["active"])],
            shadow_rules=[rule.id for rule in fired["shadow"]],
            doubt=math.prod(1 - rule.weight for rule in (*fired["deny"], *([] if fired["allow"] else fired["active"]))),
        )
        if len(self._templates) >= _CACHED_OUTCOMES:
            self._templates.clear()
        self._templates[mask] = template
        return template


def _compile(
    conditions: Sequence[Compiled], lists: dict[str, frozenset[str]]
) -> Callable[[Sequence[Facts]], list[int]]:
    """One function for all conditions: for each row, which of them hold, as bits.

    One call a batch, and each field read once a row: 40 ns a rule and transaction.
    """
    columns = {field.name: column for column, field in enumerate((*FIELDS, *MODEL_FIELDS))}
    used = sorted({name for condition in conditions for name in condition.fields}, key=columns.__getitem__)
    lines = ["def match(rows):", "    masks = []", "    for row in rows:"]
    lines += [f"        f_{name} = row[{columns[name]}]" for name in used]
    lines += ["        mask = 0"]
    for bit, condition in enumerate(conditions):
        lines += [f"        if {condition.source}:", f"            mask |= {1 << bit}"]
    lines += ["        masks.append(mask)", "    return masks"]
    namespace = {**NAMESPACE, **{f"l_{name}": entries for name, entries in lists.items()}}
    # The source is our own: names of fields and functions that we know, and constants in Python's own notation.
    exec(compile("\n".join(lines), "<rules>", "exec"), namespace)  # noqa: S102
    return namespace["match"]  # type: ignore[no-any-return]


def _shown(value: float | str | bool) -> str:
    """A value as a reason shows it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "unknown"


def _reason_format(reason: str) -> tuple[str, tuple[int, ...]]:
    """A reason as a format with bare `{}`, and the columns of the fields that fill it.

    Raises:
        RuleError: it is no format, or names a field that does not exist.
    """
    columns = {field.name: column for column, field in enumerate((*FIELDS, *MODEL_FIELDS))}
    form, used = [], []
    try:
        pieces = list(string.Formatter().parse(reason))
    except ValueError as error:
        msg = f"reason: {error} (a brace that is meant as one is written twice)"
        raise RuleError(msg) from None
    for text, name, spec, conversion in pieces:
        form.append(text.replace("{", "{{").replace("}", "}}"))
        if name is None:
            continue
        if spec or conversion or name not in columns:
            msg = (
                f"reason: there is no field {name!r}{suggestion(name, columns)}"
                if name not in columns
                else (f"reason: {{{name}}} takes no format")
            )
            raise RuleError(msg)
        form.append("{}")
        used.append(columns[name])
    return "".join(form), tuple(used)


def load_rules(path: Path) -> RuleSet:
    """Reads, checks and compiles a rules file and the lists that it names.

    Raises:
        UserError: with the file, the rule, the column and what to do; nothing of a bad file is used.
    """
    content = _read(path)
    try:
        data = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"{path}: not a TOML file: {str(error).splitlines()[0]}"
        raise UserError(msg) from error
    _known_keys(path, "the file", data, ("lists", "allow", "deny", "rule"))
    lists, digest = _load_lists(path, data.get("lists", {}))
    rules = [
        _list_rule(path, lists, effect, entry) for effect in ("deny", "allow") for entry in _tables(path, data, effect)
    ]
    rules += [_rule(path, number, entry) for number, entry in enumerate(_tables(path, data, "rule"), 1)]
    if len(rules) > MAX_RULES:
        msg = f"{path}: {len(rules)} rules, {MAX_RULES} are allowed"
        raise UserError(msg)
    kinds: dict[str, Kind] = {field.name: field.kind for field in (*FIELDS, *MODEL_FIELDS)}
    compiled, seen = [], set[str]()
    for rule in rules:
        if rule.id in seen:
            msg = f"{path}: rule {rule.id!r} stands twice: ids must differ"
            raise UserError(msg)
        seen.add(rule.id)
        try:
            compiled.append(compile_condition(rule.when, kinds, lists))
            _reason_format(rule.reason)
        except RuleError as error:
            msg = f"{path}: rule {rule.id!r}, column {error.column}: {error}"
            raise UserError(msg) from error
    version = hashlib.sha256(content + b"\0" + digest).hexdigest()[:12]
    files = tuple(path.parent / source for source in data.get("lists", {}).values() if isinstance(source, str))
    return RuleSet(rules, compiled, lists, version, files)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}: name a readable rules file in RULES_FILE, and in it lists that are there"
        raise UserError(msg) from error


def _load_lists(path: Path, table: Any) -> tuple[dict[str, frozenset[str]], bytes]:
    if not isinstance(table, dict):
        msg = f'{path}: [lists] must be a table of NAME = "FILE" or NAME = ["ENTRY", ...]'
        raise UserError(msg)
    lists, digest = {}, hashlib.sha256()
    for name, source in sorted(table.items()):
        if not name.isidentifier():
            msg = f"{path}: list {name!r}: a name has letters, digits and '_' only"
            raise UserError(msg)
        if isinstance(source, str):
            content = _read(path.parent / source)
            digest.update(hashlib.sha256(content).digest())
            try:
                lines = content.decode().splitlines()
            except UnicodeDecodeError as error:
                msg = f"{path.parent / source}: not UTF-8 text at byte {error.start}: one entry a line"
                raise UserError(msg) from error
            lists[name] = frozenset(line for line in map(str.strip, lines) if line and not line.startswith("#"))
        elif isinstance(source, list) and all(isinstance(entry, str) for entry in source):
            lists[name] = frozenset(source)
        else:
            msg = f"{path}: list {name!r} must be the name of a file or entries in brackets"
            raise UserError(msg)
    return lists, digest.digest()


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


def _list_rule(path: Path, lists: dict[str, frozenset[str]], effect: Effect, table: dict[str, Any]) -> Rule:
    what = f"[[{effect}]]"
    _known_keys(path, what, table, ("field", "list", "reason"))
    field, name = _text(path, what, table, "field"), _text(path, what, table, "list")
    if name not in lists:
        msg = f"{path}: {what}: there is no list {name!r}{suggestion(name, lists)}: name it under [lists]"
        raise UserError(msg)
    reason = _text(path, what, table, "reason", f"{field} {{{field}}} on {name}")
    return Rule(f"{effect}_{name}_{field}", f"{field} in lists.{name}", reason, float(effect == "deny"), effect, 0.0)


def _rule(path: Path, number: int, table: dict[str, Any]) -> Rule:
    what = f"rule {table['id']!r}" if isinstance(table.get("id"), str) else f"rule number {number}"
    _known_keys(path, what, table, _RULE_KEYS)
    name = _text(path, what, table, "id")
    if not _ID.fullmatch(name):
        msg = f"{path}: {what}: an id has up to 64 letters, digits, '_' and '-', and begins with a letter"
        raise UserError(msg)
    weight = table.get("weight", 0.5)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        msg = f"{path}: {what}: weight = {weight!r} is wrong: it takes a number from 0 to 1"
        raise UserError(msg)
    mode = table.get("mode", "active")
    if mode not in _MODES:
        msg = f"{path}: {what}: mode = {mode!r} is wrong: it takes {', '.join(_MODES)}"
        raise UserError(msg)
    cooldown = table.get("cooldown", "0s")
    match = _COOLDOWN.fullmatch(cooldown) if isinstance(cooldown, str) else None
    if match is None:
        msg = f'{path}: {what}: cooldown = {cooldown!r} is wrong: it takes a number and s, m, h or d, as in "10m"'
        raise UserError(msg)
    seconds = int(match[1]) * _UNITS[match[2]]
    return Rule(
        name, _text(path, what, table, "when"), _text(path, what, table, "reason"), float(weight), mode, seconds
    )
