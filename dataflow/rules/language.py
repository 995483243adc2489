"""The language of a rule's condition: parsed, checked for types and translated; nothing in it reaches Python.

Comparison (chained too), `+ - * /`, and/or/not, in, parentheses, text, numbers, true and false, the fields of a
transaction, `lists.NAME`, and the functions of `FUNCTIONS`. The text is parsed with Python's own parser into a tree, of
which only listed nodes are taken; from the tree, code is written anew: of columns, so that it is run once a batch. A
condition never raises, whatever the values: a division by zero is not a number, and with what is not a number every
comparison is false but `!=` and `not in`. Texts are compared in the form that `text_form` gives them: the fields that a
condition reads, and its own.
"""

import ast
import contextlib
import difflib
import io
import math
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple
from unicodedata import normalize

from dataflow.rules.functions import FUNCTIONS, Kind
from dataflow.rules.text_form import comparable

MAX_LENGTH, MAX_NODES, MAX_DEPTH = 2000, 400, 40
"""Of a condition, in characters, nodes and levels; a larger one is refused."""


class RuleError(Exception):
    """What is wrong with a condition, and in which of its columns, from 1."""

    def __init__(self, message: str, column: int = 1):
        super().__init__(message)
        self.column = column


class Part(NamedTuple):
    """A part of a condition, as the source of an expression over `columns`, the columns by field, texts comparable.

    Lists are the variables `l_<list>`; the rest stands in `functions.NAMESPACE`. It gives an array of flags with a
    value a row, or where the part reads no field one flag for all.
    """

    source: str
    by_row: bool  # it reads texts, or computes row by row: it takes long for many rows
    computes: bool  # it has arithmetic, of which may come what is not a number


class Bound(NamedTuple):
    """What a field must reach in a row for a condition to hold there."""

    field: str  # a number; or a flag, as 1.0 where it holds
    limit: float
    at_most: bool  # the field must be the limit or less; else the limit or more


class Condition(NamedTuple):
    """A condition that is right, ready to be compiled: it holds where all of its parts do."""

    parts: tuple[Part, ...]
    bounds: tuple[Bound, ...]  # which alone do not make it hold
    fields: frozenset[str]
    lists: frozenset[str]


_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_COMPARE_TEXTS = {"<": "text_lt", "<=": "text_le", ">": "text_gt", ">=": "text_ge", "==": "text_eq", "!=": "text_ne"}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def read_condition(
    text: str, fields: Mapping[str, Kind], lists: Collection[str], caseless_lists: Collection[str] = ()
) -> Condition:
    """Parses, checks and translates a condition; what is looked up in `caseless_lists` is made caseless before.

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
        return _Translator(fields, lists, caseless_lists).condition(tree)
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


class _Translator:
    """Translates one condition."""

    def __init__(self, fields: Mapping[str, Kind], lists: Collection[str], caseless_lists: Collection[str]):
        self._known = fields
        self._known_lists = lists
        self._caseless_lists = caseless_lists
        self._nodes = 0
        self._by_row = self._computes = False  # whether what was translated of a part so far does: see `Part`
        self._middles = 0  # of chained comparisons, each of which has a variable of its own
        self._parts: list[Part] = []
        self._bounds: list[Bound] = []
        self._fields: set[str] = set()
        self._lists: set[str] = set()

    def condition(self, tree: ast.expr) -> Condition:
        """The condition of a tree.

        Raises:
            RuleError: it is none.
        """
        if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
            self._split(tree, 0)
        else:
            kind, source = self.visit(tree, 0)
            if kind != "flag":
                msg = f"the condition is a {kind}, but must be true or false: compare it with something"
                raise RuleError(msg, tree.col_offset + 1)
            self._take(tree, source)
        return Condition(tuple(self._parts), tuple(self._bounds), frozenset(self._fields), frozenset(self._lists))

    def _split(self, node: ast.BoolOp, depth: int) -> None:
        """Takes what `and` joins as parts of the condition."""
        self._count(node, depth)
        for value in node.values:
            if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And):
                self._split(value, depth + 1)
            else:
                self._take(value, self._of("flag", value, depth, "'and'"))

    def _take(self, node: ast.expr, source: str) -> None:
        self._parts.append(Part(source, self._by_row, self._computes))
        self._bounds += self._bounds_of(node)
        self._by_row = self._computes = False

    def _bounds_of(self, node: ast.expr) -> Iterator[Bound]:
        """The bounds that a part of the condition sets, which was translated before: it is right."""
        if isinstance(node, ast.Name) and node.id in self._known:
            yield Bound(node.id, 1.0, at_most=False)  # a flag
        elif isinstance(node, ast.Compare):
            left = node.left
            for operator, right in zip(node.ops, node.comparators, strict=True):
                sign = _COMPARE.get(type(operator), "")
                if sign in _MIRRORED:
                    yield from self._bounds_between(left, sign, right)
                    yield from self._bounds_between(right, _MIRRORED[sign], left)
                left = right

    def _bounds_between(self, field: ast.expr, sign: str, limit: ast.expr) -> Iterator[Bound]:
        number = _number(limit)
        if isinstance(field, ast.Name) and self._known.get(field.id) == "number" and number is not None:
            if sign in (">", ">=", "=="):
                yield Bound(field.id, number, at_most=False)
            if sign in ("<", "<=", "=="):
                yield Bound(field.id, number, at_most=True)

    def visit(self, node: ast.expr, depth: int) -> tuple[Kind, str]:
        """The kind of an expression and its source."""
        self._count(node, depth)
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._name(node)
            case ast.BoolOp():
                word, sign = ("'and'", " & ") if isinstance(node.op, ast.And) else ("'or'", " | ")
                return "flag", "(" + sign.join(self._of("flag", value, depth, word) for value in node.values) + ")"
            case ast.UnaryOp(op=ast.Not()):
                return "flag", f"negate({self._of('flag', node.operand, depth, 'not')})"
            case ast.UnaryOp(op=ast.USub()):
                return "number", f"(-{self._of('number', node.operand, depth, 'minus')})"
            case ast.BinOp(op=ast.Div()):
                left, right = (self._of("number", side, depth, "'/'") for side in (node.left, node.right))
                self._computes = True
                return "number", f"divide({left}, {right})"
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                sign = _ARITHMETIC[type(node.op)]
                left, right = (self._of("number", side, depth, f"{sign!r}") for side in (node.left, node.right))
                self._computes = True
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
        self._fields.add(node.id)
        kind = self._known[node.id]
        self._by_row |= kind == "text"
        return kind, f"columns[{node.id!r}]"

    def _compare(self, node: ast.Compare, depth: int) -> tuple[Kind, str]:
        kind, source = self.visit(node.left, depth + 1)
        pairs = []
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                if len(node.ops) > 1:
                    msg = "'in' cannot be chained with another comparison: use 'and'"
                    raise RuleError(msg, right.col_offset + 1)
                collection = self._collection(right, kind)
                if isinstance(right, ast.Attribute) and right.attr in self._caseless_lists:
                    source = f"caseless({source})"
                self._by_row = True
                found = f"is_in({source}, {collection})"
                return "flag", found if isinstance(operator, ast.In) else f"negate({found})"
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
            middle = right_source
            if right is not node.comparators[-1]:  # it is compared on both sides, and computed once
                self._middles += 1
                middle = f"m{self._middles}"
                right_source = f"({middle} := {right_source})"
            self._by_row |= kind == "text"
            pairs.append(
                f"{_COMPARE_TEXTS[sign]}({source}, {right_source})"
                if kind == "text"
                else f"({source} {sign} {right_source})"
            )
            source = middle
            left = right
        return "flag", pairs[0] if len(pairs) == 1 else "(" + " & ".join(pairs) + ")"

    def _collection(self, node: ast.expr, kind: Kind) -> str:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lists":
            if node.attr not in self._known_lists:
                msg = f"there is no list {node.attr!r}{suggestion(node.attr, self._known_lists)}"
                raise RuleError(msg, node.col_offset + 1)
            if kind != "text":
                msg = f"lists hold text, but a {kind} is looked up"
                raise RuleError(msg, node.col_offset + 1)
            self._lists.add(node.attr)
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
            return "{" + ", ".join(sources) + "}"
        msg = "behind 'in' stand constants in brackets, or lists.NAME"
        raise RuleError(msg, node.col_offset + 1)

    def _call(self, node: ast.Call, depth: int) -> tuple[Kind, str]:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            what = ast.unparse(node.func)[:40]
            msg = f"there is no function {what!r}{suggestion(what, FUNCTIONS)}"
            raise RuleError(msg, node.col_offset + 1)
        function = FUNCTIONS[name]
        takes = function.takes
        if node.keywords or len(node.args) != len(takes):
            msg = f"{name} takes {len(takes)} value{'s' * (len(takes) > 1)}, each a {' and a '.join(takes)}"
            raise RuleError(msg, node.col_offset + 1)
        arguments = [self._argument(kind, arg, depth, name) for kind, arg in zip(takes, node.args, strict=True)]
        self._by_row |= function.by_row
        self._computes = True
        return function.gives, f"fn_{name}({', '.join(arguments)})"

    def _argument(self, kind: Kind, node: ast.expr, depth: int, function: str) -> str:
        if kind == "text" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._count(node, depth + 1)
            return repr(normalize("NFC", node.value))  # with blanks around: contains(merchant, " ") asks for one
        return self._of(kind, node, depth, function)


def _number(node: ast.expr) -> float | None:
    """A number that stands in the condition, with a minus or without; None where something else stands there."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _number(node.operand)
        return None if number is None else -number
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def suggestion(name: str, known: Collection[str]) -> str:
    """', did you mean X?' for a misspelt name, else what there is, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
