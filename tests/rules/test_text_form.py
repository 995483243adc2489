"""The form in which texts are compared."""

from unicodedata import normalize

from hypothesis import given
from hypothesis import strategies as st

from dataflow.rules.text_form import caseless, comparable

letters = st.one_of(st.characters(), st.sampled_from("e\u0308\u030cJ\u0130\u00df \t\u00a0\u2001"))
texts = st.text(letters, max_size=8)


@given(st.lists(texts, max_size=5), st.sampled_from(["", " ", "\u2003\n"]))
def test_comparable_texts_do_not_depend_on_composition_or_blanks_or_each_other(texts: list[str], blank: str) -> None:
    expected = [normalize("NFC", text.strip()) for text in texts]
    assert comparable(texts) == expected
    assert comparable(blank + normalize("NFD", text) + blank for text in texts) == expected
    assert comparable(expected) == expected


@given(texts)
def test_caseless_texts_do_not_depend_on_case_or_composition(text: str) -> None:
    assert caseless(text) == caseless(normalize("NFD", text)) == caseless(text.casefold()) == caseless(caseless(text))
