"""The kinds of errors: few, whatever a message holds."""

import ast
import inspect

from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from dataflow.events import feedback, parsing
from dataflow.events.error_kinds import KINDS, OTHER, STEP_FAILED, error_kind
from dataflow.events.feedback import parse_feedback
from dataflow.events.parsing import parse
from dataflow.events.transaction import Rejection
from tests.support.builders import fields

ANY = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def rejected(error: str, step: str = "") -> Rejection:
    return Rejection(error, "", 0, 0, 0, None, None, step=step)


@given(st.sampled_from([*fields(), "latitude", "category", "ip"]), ANY, st.binary(max_size=20))
def test_whatever_is_wrong_with_a_message_has_a_kind(name: str, value: object, junk: bytes) -> None:
    for body in (json.encode({**fields(), name: value}), junk):
        for found in (parse(body, b"k", "t", 0, 0, 10**12), parse_feedback(body, b"k", 0, 0, 10**12)):
            if isinstance(found, Rejection):
                assert error_kind(found) in KINDS
                assert error_kind(found) != OTHER, found.error


def test_each_text_that_the_parsers_reject_with_has_a_kind() -> None:
    texts = []
    for module in (parsing, feedback):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Rejection", "rejected") and node.args:
                texts += [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
    assert len(texts) > 12
    assert {text for text in texts if error_kind(rejected(text)) == OTHER} == set()


def test_what_a_step_failed_on_is_a_kind_and_what_nobody_knows_is_one() -> None:
    assert error_kind(rejected("ValueError", step="update_user_profile")) == STEP_FAILED
    assert error_kind(rejected("4111111111111111")) == OTHER
