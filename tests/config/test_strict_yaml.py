import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import compose, strict_yaml
from gateway.config.strict_yaml import Broken, Tree, read_yaml


@pytest.fixture(params=[compose._Loader, yaml.SafeLoader], ids=["libyaml", "pyyaml"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "_Loader", request.param)


def read(text: str | bytes) -> tuple[Tree, list[str]]:
    tree, faults = read_yaml(text.encode() if isinstance(text, str) else text, "f")
    return tree, [str(fault) for fault in faults]


def test_data_is_plain() -> None:
    tree, faults = read("a: [1, 0.5, true, ~, x, '1', \"2\"]\nb:\n  c: |\n    text\n  d:\n")
    assert not faults
    assert tree.data == {"a": [1, 0.5, True, None, "x", "1", "2"], "b": {"c": "text\n", "d": None}}


def test_everything_has_its_place() -> None:
    tree, _ = read("é: ü\nmodels:\n  - id: a\n    route:\n      - {weight: 1}\n")
    assert str(tree.fault(("models", 0, "route", 0, "weight"), "m")) == "f:5:18: models[0].route[0].weight: m"
    assert str(tree.fault(("models", 0, "route", 0, "weight"), "m", at_key=True)) == (
        "f:5:10: models[0].route[0].weight: m"
    )
    assert str(tree.fault(("é",), "m")) == "f:1:4: ['é']: m"


def test_a_place_that_is_not_there_is_its_nearest_parent() -> None:
    tree, _ = read("models:\n  - id: a\n")
    assert str(tree.fault(("models", 0, "route", 7, "weight"), "m")) == "f:2:5: models[0].route[7].weight: m"
    assert str(tree.fault(("models", 0, "x"), "m", at_key=True)) == "f:2:5: models[0].x: m"
    assert str(tree.fault((), "m", at_key=True)) == "f:1:1: m"
    assert str(Tree("f").fault(("x",), "m")) == "f: x: m"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a:\n\tb: 1", "f:2:1: found a tab, expected spaces"),
        ("a: @x", "f:1:4: found a character that cannot start a value: quote the value"),
        ("a: b: c", "f:1:5: found a second ': ' or wrong indentation"),
        ("a: [1", "f:1:4: found a list that is not closed"),
        ("a: {b", "f:1:4: found a mapping that is not closed"),
        ("a: 'x\n", "f:1:4: found a quote that is not closed"),
        ("a: 1\nb\nc: 2", "f:2:1: found a line without ': '"),
        ("- a\nb: c", "f:2:1: found "),
        ("a: - b", "f:1:4: found '- ' beside a key"),
        ("a:\n  b: 1\n c: 2", "f:3:2: found wrong indentation"),
        ('"a" b', "f:1:5: found text after the end of a value"),
        ('a: "\\q"', "f:1:"),
        ("a: [*]", "f:1:6: found '*' or '&' without a name: quote the value"),
        ("a: *.log", "f:1:5: found '*' or '&' without a name: quote the value"),
        ("a: >0.5", "f:1:5: found text after '|' or '>', expected it in the lines below, indented"),
        ("a: | text\n", "f:1:6: found text after '|' or '>'"),
        ("%YAML 3.0\n---\na: 1", "f:1:1: found something that is not YAML"),
        ("[" * 900, "f:1:34: found more than 32 levels of nesting"),
        ("- " * 1_000, "f:1:67: found more than 32 levels of nesting"),
        ("a: 1\nb: \x01", "f:2:4: found the control character U+0001"),
        ("a: b\n\x00", "f:2:1: found the control character U+0000"),
        (b"a: \xff", "f:1:4: found bytes that are not UTF-8"),
        (b"a: 1\nb: \xc3\xa9\xc3", "f:2:5: found bytes that are not UTF-8"),
        (b"\xef\xbb\xbfa: \xff", "f:1:4: found bytes that are not UTF-8"),
        (b"\xef\xbb\xbf\xc3\xa9ab\xff: 1\n", "f:1:4: found bytes that are not UTF-8"),
        ("a: b".encode("utf-16"), "f:1:1: found bytes that are not UTF-8"),
    ],
)
def test_what_is_no_yaml_is_one_fault_with_its_place(text: str | bytes, fault: str) -> None:
    tree, faults = read(text)
    assert len(faults) == 1
    assert faults[0].startswith(fault)
    assert tree.data == Broken()


def test_what_the_parser_itself_finds_nested_too_deeply_is_told_as_that() -> None:
    _, (fault,) = read("[" * 100_000)
    assert fault.endswith(": found more than 32 levels of nesting")


def test_an_error_without_a_place_is_about_the_file() -> None:
    error = compose._unreadable(yaml.YAMLError("canary"), "a: 1")
    assert (error.mark, error.message) == ((0, 0), "found something that is not YAML")


def test_a_place_behind_the_end_is_brought_back_into_the_file() -> None:
    _, faults = read("a: [1,\n\n\n")
    assert faults[0].startswith(("f:1:4:", "f:1:7:"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1: a: found the key a second time, expected it once: the first is in line 1"),
        ("1: x", "f:1:1: found 1 as a key, expected text: quote it"),
        ("~: x", "f:1:1: found ~ as a key, expected text: quote it"),
        ("on: x", "f:1:1: found on as a key, which YAML 1.1 reads as true or false"),
        ("a:\n  [b]: x", "f:2:3: a: found a list or a mapping as a key, expected text: quote it"),
        ("{{ a }}: x", "f:1:1: found a list or a mapping as a key, expected text: quote it"),
        ("<<: {a: 1}", "f:1:1: found a merge key '<<', expected plain keys"),
        ("*a : x", "f:1:1: found an alias without an anchor"),
        ("a: !x b", "f:1:4: a: found a tag ('!'), expected a value without one"),
        ("a: !!python/object:os.system [b]", "f:1:4: a: found a tag ('!')"),
        ("a: !!str 1", "f:1:4: a: found a tag ('!')"),
        ("a: *b", "f:1:4: a: found an alias without an anchor that ends before it"),
        ("a: 1\nb: *None", "f:2:4: b: found an alias without an anchor that ends before it"),
        ("a: &a [*a]", "f:1:8: a[0]: found an alias without an anchor that ends before it"),
        ("a: &x 1\nb: &x {c: *x}", "f:2:11: b.c: found an alias without an anchor that ends before it"),
        ("a: 1\n---\nb: 2", "f:2:1: found a second document, expected one"),
        ("a: yes", "f:1:4: a: found yes, which YAML 1.1 reads as true or false and YAML 1.2 as text"),
        ("a: 22:22", "f:1:4: a: found 22:22, which YAML 1.1 reads as a number in base 60: quote it"),
        ("a: .nan", "f:1:4: a: found .nan, expected a finite number"),
        (
            "a:\n  - b\n   - c\n",
            "f:3:4: a[0]: found '- ' in text that goes on from the line above, expected it indented",
        ),
        ("a:\n- b\n\n  c\n  - d\n- e\n", "f:5:3: a[0]: found '- ' in text that goes on from the line above"),
        ("a:\n  - &x b\n   - c\n  - *x\n", "f:3:4: a[0]: found '- ' in text that goes on from the line above"),
    ],
)
def test_what_is_refused_leaves_the_rest_readable(text: str, fault: str) -> None:
    tree, faults = read(text)
    assert len(faults) == 1
    assert faults[0].startswith(fault)
    assert isinstance(tree.data, dict)


def test_all_faults_are_told_and_the_rest_is_read() -> None:
    tree, faults = read("a: yes\nb: !x 1\nc: 010\nd: 1\nd: 2\n")
    assert len(faults) == 4
    assert tree.data == {"a": Broken("yes"), "b": Broken(), "c": Broken("010"), "d": 1}


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("- b\n  c - d\n", "b c - d"),
        ("- b\n  -c\n", "b -c"),
        ("- 'b\n   - c'\n", "b - c"),
        ("- |\n  b\n  - c\n", "b\n- c\n"),
        ("- b - c\n", "b - c"),
        ("-\n  - b\n", ["b"]),
    ],
)
def test_an_item_may_take_several_lines(text: str, item: object) -> None:
    tree, faults = read(text)
    assert (tree.data, faults) == ([item], [])


@pytest.mark.parametrize("text", ["a: 'yes'", 'a: "yes"', "a: |-\n  yes", "'a': 'yes'"])
def test_a_quoted_surprise_is_text(text: str) -> None:
    assert read(text)[0].data == {"a": "yes"}


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    assert read("\ufeffa: 1\r\nb: 2\r\n")[0].data == {"a": 1, "b": 2}


def test_an_alias_repeats_a_value() -> None:
    tree, faults = read("a: &x [1, {b: 2}]\nc: *x\nd: &x 3\ne: *x\nf: &None 4\ng: 5\nh: *None\n")
    assert not faults
    assert tree.data == {"a": [1, {"b": 2}], "c": [1, {"b": 2}], "d": 3, "e": 3, "f": 4, "g": 5, "h": 4}
    assert tree.values[("c", 1, "b")] == tree.values[("a", 1, "b")] == (1, 15)


def test_an_alias_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml, "MOST_VALUES", 10_000)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 30)]
    tree, faults = read("\n".join(lines))
    assert faults == ["f:1:37: found more than 10000 values or 32 levels, with its aliases followed"]
    assert tree.data == Broken()


def test_aliases_that_nest_without_end_are_refused() -> None:
    lines = ["a0: &a0 x", *(f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 200))]
    _, faults = read("\n".join(lines))
    assert len(faults) == 1
    assert faults[0].endswith("found more than 1000000 values or 32 levels, with its aliases followed")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~"])
def test_a_file_without_a_document_holds_nothing(text: str) -> None:
    assert read(text)[0].data is None


def test_a_value_is_found_by_its_path() -> None:
    tree, _ = read("a: [{b: 1}]\nc: !x 1\n")
    assert tree.at(("a", 0, "b")) == 1
    assert tree.at(("c", "anything", 0)) == Broken()
    for path in [("a", 1), ("a", 0, "c"), ("a", "b"), ("a", 0, "b", "c")]:
        with pytest.raises(LookupError):
            tree.at(path)


def test_a_lone_surrogate_is_no_text() -> None:
    tree, faults = read('a: "\\ud800"\n')
    assert len(faults) == 1
    assert faults[0].startswith("f:1:")
    assert Broken() in (tree.data, tree.at(("a",)))


_TEXT = st.text(st.characters(exclude_categories=["C"], exclude_characters="\u2028\u2029"), max_size=20)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.exhaustive
@given(_JSON)
def test_json_reads_as_what_it_is(value: object) -> None:
    tree, faults = read(json.dumps(value, ensure_ascii=False))
    assert not faults
    assert tree.data == value
