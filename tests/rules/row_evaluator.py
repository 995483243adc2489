"""The evaluator that came before: each condition as Python code, row after row. It is the oracle of the columns.

The lines are those of `dataflow/rule_language.py` and `dataflow/rules.py` as they stood before issue 19, but for what
reads files. It shares `text_form`, the fields and the words of reasons with what it judges, and nothing else.
"""

import ast
import contextlib
import difflib
import io
import math
import re
import tokenize
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple
from unicodedata import normalize

from dataflow.rules import ALL_FIELDS, Rule, RuleResult
from dataflow.rules.fields import KINDS
from dataflow.rules.reasons import parse_reason, show
from dataflow.rules.text_form import caseless, comparable

Kind = Literal["number", "text", "flag"]

MAX_LENGTH, MAX_NODES, MAX_DEPTH = 2000, 400, 40
"""Of a condition, in characters, nodes and levels; a larger one is refused."""


class RuleError(Exception):
    """What is wrong with a condition, and in which of its columns, from 1."""

    def __init__(self, message: str, column: int = 1):
        super().__init__(message)
        self.column = column


class Compiled(NamedTuple):
    """A condition as Python source over the variables `f_<field>`, texts comparable, and `l_<list>`."""

    source: str
    fields: frozenset[str]
    lists: frozenset[str]


def divide(a: float, b: float) -> float:
    """The quotient; not a number where the divisor is zero."""
    return a / b if b else math.nan


def hour(timestamp: float) -> float:
    """Hour of the day, 0 to 23, UTC."""
    return timestamp % 86_400 // 3600


def weekday(timestamp: float) -> float:
    """Day of the week, 0 = Monday to 6, UTC; 1970-01-01 was a Thursday."""
    return (timestamp // 86_400 + 3) % 7


def log1p(value: float) -> float:
    """Natural logarithm of 1 + value; not a number from -1 down."""
    return math.log1p(value) if value > -1 else math.nan


def lower(text: str) -> str:
    """In lower case, which may have to be composed again."""
    return normalize("NFC", text.lower())


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Kind, ...], Kind]] = {
    "abs": (abs, ("number",), "number"),
    "min": (min, ("number", "number"), "number"),
    "max": (max, ("number", "number"), "number"),
    "log1p": (log1p, ("number",), "number"),
    "hour": (hour, ("number",), "number"),
    "weekday": (weekday, ("number",), "number"),
    "length": (len, ("text",), "number"),
    "lower": (lower, ("text",), "text"),
    "startswith": (str.startswith, ("text", "text"), "flag"),
    "endswith": (str.endswith, ("text", "text"), "flag"),
    "contains": (str.__contains__, ("text", "text"), "flag"),
}
"""Name: what computes it, the kinds it takes, the kind it gives."""

NAMESPACE: dict[str, Any] = {
    "__builtins__": {},
    "divide": divide,
    "caseless": caseless,
    **{f"fn_{name}": function for name, (function, _, _) in FUNCTIONS.items()},
}
"""The globals that compiled conditions run with."""

_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def compile_condition(
    text: str, fields: Mapping[str, Kind], lists: Collection[str], caseless_lists: Collection[str] = ()
) -> Compiled:
    """Parses, checks and compiles a condition; what is looked up in `caseless_lists` is made caseless before.

    Raises:
        RuleError: it is none, with the column and, for a misspelt name, a suggestion.
    """
    if len(text) > MAX_LENGTH:
        msg = f"the condition has {len(text)} characters, {MAX_LENGTH} are allowed"
        raise RuleError(msg)
    line = "".join(" " if c in "\n\r\t\f" else c for c in text)
    indent = len(line) - len(line.lstrip())  # Python's parser takes none, and columns count it
    tree = _parse(line[indent:], indent)
    try:
        return _compile(tree, _Compiler(fields, lists, caseless_lists))
    except RecursionError:  # in the text of an error about a deeply nested part
        msg = "the condition is nested too deeply"
        raise RuleError(msg) from None
    except RuleError as error:
        # The tree's columns count bytes from 0.
        before = line[indent:].encode()[: error.column - 1].decode(errors="ignore")
        error.column = indent + len(before) + 1
        raise


def _parse(line: str, indent: int) -> ast.expr:
    # First, as Python's parser takes a wrong escape with a warning, and a filter for it would be the whole process's.
    with contextlib.suppress(SyntaxError, tokenize.TokenError):  # which the parser tells better
        for token in tokenize.generate_tokens(io.StringIO(line).readline):
            column = indent + token.start[1] + 1
            if token.type == tokenize.COMMENT:  # it would hide all that follows, on the next line too
                msg = "a condition holds no comment: write it above the rule"
                raise RuleError(msg, column)
            if token.type == tokenize.STRING and _WRONG_ESCAPE.match(token.string):
                msg = f"not a condition: {token.string[:40]} has a backslash that stands for nothing: write it twice"
                raise RuleError(msg, column)
    try:
        return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        msg = f"not a condition: {error.msg}"
        raise RuleError(msg, indent + max(error.offset or 1, 1)) from None
    except (ValueError, MemoryError, RecursionError):
        msg = "not a condition: it cannot be parsed"
        raise RuleError(msg) from None


_WRONG_ESCAPE = re.compile(r"""['"](?:[^\\]|\\[\\'"abfnrtv0-7xuUN])*\\[^\\'"abfnrtv0-7xuUN]""", re.DOTALL)


def _compile(tree: ast.expr, compiler: "_Compiler") -> Compiled:
    kind, source = compiler.visit(tree, 0)
    if kind != "flag":
        msg = f"the condition is a {kind}, but must be true or false: compare it with something"
        raise RuleError(msg, tree.col_offset + 1)
    return Compiled(source, frozenset(compiler.fields), frozenset(compiler.lists))


class _Compiler:
    def __init__(self, fields: Mapping[str, Kind], lists: Collection[str], caseless_lists: Collection[str]):
        self._known = fields
        self._known_lists = lists
        self._caseless_lists = caseless_lists
        self._nodes = 0
        self.fields: set[str] = set()
        self.lists: set[str] = set()

    def visit(self, node: ast.expr, depth: int) -> tuple[Kind, str]:
        """The kind of an expression and its source."""
        self._count(node, depth)
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._name(node)
            case ast.BoolOp():
                word = " and " if isinstance(node.op, ast.And) else " or "
                return "flag", "(" + word.join(
                    self._of("flag", v, depth, f"'{word.strip()}'") for v in node.values
                ) + ")"
            case ast.UnaryOp(op=ast.Not()):
                return "flag", f"(not {self._of('flag', node.operand, depth, 'not')})"
            case ast.UnaryOp(op=ast.USub()):
                return "number", f"(-{self._of('number', node.operand, depth, 'minus')})"
            case ast.BinOp(op=ast.Div()):
                left, right = (self._of("number", side, depth, "'/'") for side in (node.left, node.right))
                return "number", f"divide({left}, {right})"
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                sign = _ARITHMETIC[type(node.op)]
                left, right = (self._of("number", side, depth, f"{sign!r}") for side in (node.left, node.right))
                if sign == "*" and not isinstance(node.left, ast.Constant) and not isinstance(node.right, ast.Constant):
                    left += " * 1.0"  # a product of counts alone could outgrow what a float can hold, and raise
                return "number", f"({left} {sign} {right})"
            case ast.Compare():
                return self._compare(node, depth)
            case ast.Call():
                return self._call(node, depth)
            case ast.Attribute():
                msg = "lists.NAME stands only behind 'in'; there are no other names with a dot"
                raise RuleError(msg, node.col_offset + 1)
        msg = f"{ast.unparse(node)[:40]!r} is not part of the rule language"
        raise RuleError(msg, node.col_offset + 1)

    def _count(self, node: ast.expr, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            msg = f"the condition is too large: at most {MAX_NODES} parts, nested {MAX_DEPTH} deep"
            raise RuleError(msg, node.col_offset + 1)

    def _of(self, wanted: Kind, node: ast.expr, depth: int, where: str) -> str:
        kind, source = self.visit(node, depth + 1)
        if kind != wanted:
            msg = f"{where} takes a {wanted}, but {ast.unparse(node)[:40]!r} is a {kind}"
            raise RuleError(msg, node.col_offset + 1)
        return source

    def _constant(self, node: ast.Constant) -> tuple[Kind, str]:
        value = node.value
        if isinstance(value, bool):
            return "flag", repr(value)
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return "number", repr(number)
            msg = "a number must be finite"
            raise RuleError(msg, node.col_offset + 1)
        if isinstance(value, str):
            return "text", repr(comparable([value])[0])
        msg = f"{ast.unparse(node)[:40]!r} is neither a number nor text nor true or false"
        raise RuleError(msg, node.col_offset + 1)

    def _name(self, node: ast.Name) -> tuple[Kind, str]:
        if node.id in ("true", "false"):
            return "flag", node.id.capitalize()
        if node.id not in self._known:
            msg = f"there is no field {node.id!r}{suggestion(node.id, [*self._known, *FUNCTIONS])}"
            raise RuleError(msg, node.col_offset + 1)
        self.fields.add(node.id)
        return self._known[node.id], f"f_{node.id}"

    def _compare(self, node: ast.Compare, depth: int) -> tuple[Kind, str]:
        kind, source = self.visit(node.left, depth + 1)
        parts = [source]
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                if len(node.ops) > 1:
                    msg = "'in' cannot be chained with another comparison: use 'and'"
                    raise RuleError(msg, right.col_offset + 1)
                word = "in" if isinstance(operator, ast.In) else "not in"
                collection = self._collection(right, kind)
                if isinstance(right, ast.Attribute) and right.attr in self._caseless_lists:
                    source = f"caseless({source})"
                return "flag", f"({source} {word} {collection})"
            if type(operator) not in _COMPARE:
                msg = "'is' is not part of the rule language: use =="
                raise RuleError(msg, right.col_offset + 1)
            sign = _COMPARE[type(operator)]
            right_kind, right_source = self.visit(right, depth + 1)
            if right_kind != kind:
                sides = f"{ast.unparse(left)[:40]!r} is a {kind}, {ast.unparse(right)[:40]!r} a {right_kind}"
                msg = f"{sides}: they cannot be compared"
                raise RuleError(msg, right.col_offset + 1)
            if kind == "flag" and sign not in ("==", "!="):
                msg = f"{sign!r} does not compare flags: use == or !="
                raise RuleError(msg, right.col_offset + 1)
            parts += [sign, right_source]
            left = right
        return "flag", "(" + " ".join(parts) + ")"

    def _collection(self, node: ast.expr, kind: Kind) -> str:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lists":
            if node.attr not in self._known_lists:
                msg = f"there is no list {node.attr!r}{suggestion(node.attr, self._known_lists)}"
                raise RuleError(msg, node.col_offset + 1)
            if kind != "text":
                msg = f"lists hold text, but a {kind} is looked up"
                raise RuleError(msg, node.col_offset + 1)
            self.lists.add(node.attr)
            return f"l_{node.attr}"
        if isinstance(node, ast.List | ast.Tuple | ast.Set) and node.elts:
            self._nodes += len(node.elts)
            self._count(node, 0)
            sources = []
            for element in node.elts:
                match element:
                    case ast.Constant():
                        element_kind, source = self._constant(element)
                    case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
                        element_kind, source = self.visit(element, 0)
                    case _:
                        msg = "behind 'in' stand constants in brackets, or lists.NAME"
                        raise RuleError(msg, element.col_offset + 1)
                if element_kind != kind:
                    msg = f"{source} is a {element_kind}, but a {kind} is looked up"
                    raise RuleError(msg, element.col_offset + 1)
                sources.append(source)
            return "{" + ", ".join(sources) + "}"  # a constant to Python: one look-up, however many they are
        msg = "behind 'in' stand constants in brackets, or lists.NAME"
        raise RuleError(msg, node.col_offset + 1)

    def _call(self, node: ast.Call, depth: int) -> tuple[Kind, str]:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            what = ast.unparse(node.func)[:40]
            msg = f"there is no function {what!r}{suggestion(what, FUNCTIONS)}"
            raise RuleError(msg, node.col_offset + 1)
        _, takes, gives = FUNCTIONS[name]
        if node.keywords or len(node.args) != len(takes):
            msg = f"{name} takes {len(takes)} value{'s' * (len(takes) > 1)}, each a {' and a '.join(takes)}"
            raise RuleError(msg, node.col_offset + 1)
        arguments = [self._argument(kind, arg, depth, name) for kind, arg in zip(takes, node.args, strict=True)]
        return gives, f"fn_{name}({', '.join(arguments)})"

    def _argument(self, kind: Kind, node: ast.expr, depth: int, function: str) -> str:
        if kind == "text" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._count(node, depth + 1)
            return repr(normalize("NFC", node.value))  # with blanks around: contains(merchant, " ") asks for one
        return self._of(kind, node, depth, function)


def suggestion(name: str, known: Collection[str]) -> str:
    """', did you mean X?' for a misspelt name, else what there is, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


Effect = Literal["deny", "allow", "active", "shadow"]
STEP_CHARACTERS = 8_000


class Rows:
    """Rows in the order of the fields, by column."""

    def __init__(self, rows: Sequence[tuple[Any, ...]]):
        self._rows = rows
        self._places = {field.name: place for place, field in enumerate(ALL_FIELDS)}

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Any]:
        place = self._places[name]
        return [row[place] for row in self._rows]


class _Template(NamedTuple):
    """RuleResult of one combination of rules; what differs between transactions is filled in."""

    outcome: RuleResult
    placeholders: list[tuple[int, str, tuple[str, ...]]]  # which reason, its format, the fields it takes
    fired: list[Rule]


class _Piece(NamedTuple):
    """Some of the conditions as one function: for each row, it adds to the row's mask the bits of those that hold."""

    match: Callable[[Iterable[tuple[Any, ...]], list[int]], None]
    reads: list[str]  # the fields that the function takes of each row, behind the row's number


class RowEvaluator:
    """Rules, and what they say of rows."""

    def __init__(
        self, rules: Sequence[Rule], lists: Mapping[str, AbstractSet[str]], caseless_lists: Collection[str] = ()
    ):
        compiled = [compile_condition(rule.when, KINDS, lists, caseless_lists) for rule in rules]
        live = [(rule, code) for rule, code in zip(rules, compiled, strict=True) if rule.effect != "off"]
        self._live = [rule for rule, _ in live]
        self._used = sorted({name for _, code in live for name in code.fields})
        self._used_texts = [name for name in self._used if KINDS[name] == "text"]
        self._pieces = _compile_all([code for _, code in live], lists)
        self._quiet = RuleResult(False, [], [], [], 1.0, ())
        self._templates: dict[int, _Template] = {}

    def evaluate(self, table: Any) -> list[RuleResult]:
        masks = self._match(table)
        outcomes = [self._quiet] * len(masks)
        if not any(masks):
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
                    reasons[number] = form.format(*[show(table.column(name)[place]) for name in names])
                outcome = outcome._replace(reasons=reasons)
            outcomes[place] = outcome
        return outcomes

    def _match(self, table: Any) -> list[int]:
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
            form, names = parse_reason(rule.reason)
            reasons.append("" if names else form.format())
            if names:
                placeholders.append((place, form, names))
        cooldowns = tuple((rule.id, rule.cooldown) for rule in accused)
        actions = {rule.action for rule in accused}
        template = _Template(
            RuleResult(
                fraudulent=bool(accused),
                reasons=reasons,
                rules=[rule.id for rule in (*deny, *allow, *active)],
                shadow_rules=[rule.id for rule in shadow],
                p_genuine=math.prod(1 - rule.weight for rule in accused),
                cooldowns=cooldowns if any(seconds for _, seconds in cooldowns) else (),
                action="block" if "block" in actions else "review" if accused else "approve",
            ),
            placeholders,
            deny + allow + active + shadow,
        )
        self._templates[mask] = template
        return template


def _compile_all(conditions: Sequence[Compiled], lists: Mapping[str, AbstractSet[str]]) -> list[_Piece]:
    """The conditions as functions, each of as many as are compiled in one step."""
    pieces: list[_Piece] = []
    step: list[Compiled] = []
    characters = 0
    for bit, condition in enumerate(conditions):
        own = sum(map(len, _branch(condition, len(step))))
        if step and characters + own > STEP_CHARACTERS:
            pieces.append(_compile_step(step, bit - len(step), lists))
            step, characters = [], 0
        step.append(condition)
        characters += own
    if step:
        pieces.append(_compile_step(step, len(conditions) - len(step), lists))
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
