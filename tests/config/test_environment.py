import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.environment import (
    Interpolated,
    MalformedReferenceError,
    UnsetVariablesError,
    expand,
    read_env,
)

SET = {"A": "alpha", "B": "beta", "EMPTY": "", "DOLLAR": "${A}"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "alpha"),
        ("http://${A}:80/${B}", "http://alpha:80/beta"),
        ("${NONE:-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", ""),
        ("${NONE:-}", ""),
        ("${A:-x}", "alpha"),
        ("${NONE:-${B}}", "beta"),
        ("${NONE:-<${ALSO:-${B}}>}!", "<beta>!"),
        ("${A:-${NONE}}", "alpha"),
        ("${NONE:-$$5 $x}", "$5 $x"),
        ("${DOLLAR}", "${A}"),
        ("{${A}}", "{alpha}"),
        ("${NONE:-http://localhost:8000}", "http://localhost:8000"),
    ],
)
def test_references_are_replaced(text: str, expanded: str) -> None:
    value = expand(text, SET)
    assert value == expanded
    assert isinstance(value, Interpolated)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [("$$", "$"), ("$${A}", "${A}"), ("$A", "$A"), ("5$", "5$"), ("}", "}"), ("$$$$", "$$"), ("", "")],
)
def test_text_without_a_reference_is_plain(text: str, expanded: str) -> None:
    value = expand(text, SET)
    assert value == expanded
    assert not isinstance(value, Interpolated)


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${1A}", "${A-x}", "${A:=x}", "${A:-x", "${ A}", "${A }", "${É}"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(MalformedReferenceError):
        expand(text, SET)


def test_a_malformed_default_is_refused_even_when_it_is_not_needed() -> None:
    with pytest.raises(MalformedReferenceError):
        expand("${A:-${}}", SET)


def test_defaults_nested_without_end_are_refused() -> None:
    with pytest.raises(MalformedReferenceError):
        expand("${N:-" * 10_000 + "}" * 10_000, SET)


def test_all_unset_variables_are_named() -> None:
    with pytest.raises(UnsetVariablesError) as caught:
        expand("${ONE}${A}${TWO:-${THREE}}", SET)
    assert caught.value.variables == ("ONE", "THREE")


def test_interpolated_text_knows_its_variables_and_hides_its_text() -> None:
    value = expand("${A}-${NONE:-${B}}", SET)
    assert isinstance(value, Interpolated)
    assert value.variables == ("A", "NONE", "B")
    assert repr([value]) == "[<the value of ${A}${NONE}${B}>]"


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == text


@given(st.text())
def test_a_variable_comes_through_as_it_is(value: str) -> None:
    assert expand("<${V}>", {"V": value}) == f"<{value}>"


PIECES = ["$", "$$", "{", "}", "${", "${A", "${A}", "${NONE", "${NONE}", ":-", ":-x}", "${NONE:-", "${1}", "a b", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_expanding_never_fails_otherwise(text: str) -> None:
    try:
        value = expand(text, SET)
    except (MalformedReferenceError, UnsetVariablesError):
        return
    assert isinstance(value, str)


def test_a_dot_env_is_read_without_its_references() -> None:
    values, bad = read_env("# keys\nA=1\nexport B='two words'\nC=\"x\\ny\"\nD=${A}\nE=\nF\n")
    assert values == {"A": "1", "B": "two words", "C": "x\ny", "D": "${A}", "E": ""}
    assert bad == ()


def test_the_lines_of_a_dot_env_that_assign_nothing_are_told() -> None:
    values, bad = read_env("A=1\n\n\nnot an assignment\nB=2\n= 3\n")
    assert values == {"A": "1", "B": "2"}
    assert bad == (4, 6)
