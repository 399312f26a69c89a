"""Large bodies: what is written into them, and that nothing else of them changes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.adapters.edited import LARGE, Edit, Edited, asking_usage, named, pieces
from gateway.adapters.openai_compatible import UnreplaceableModelError, replace_model, with_usage

PICTURE = "data:image/png;base64," + "iVBORw0KGgo+/A" * (LARGE // 7)
SPACE = b" " * LARGE
BLOCK = 1 << 14


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "body",
    [
        encoded({"model": "m", "x": PICTURE}),
        encoded({"x": PICTURE, "model": "m"}),
        encoded({"x": [PICTURE, {"model": "no", "y": PICTURE}], "model": "m", "z": {"model": PICTURE}}),
        encoded({PICTURE: 1, "model": "m", "x": {PICTURE: PICTURE}}),
        encoded({"model": "m", "input": list(range(LARGE))}),
        encoded({"input": ["\n", *range(LARGE)], "model": "m", "x": PICTURE}),
        b'{"model":"m","input":1' + b"0" * LARGE + b"}",
        encoded({"model": "m", "x": "é😀" * LARGE}),
        encoded({"model": "m", "x": 'He said "so" and\nleft. ' * (LARGE // 8)}),
        encoded({"x": PICTURE}).replace(b"{", b" " * LARGE + b'{"model" : \n' + b" " * LARGE + b'"m",', 1)
        + b" " * LARGE,
        encoded({"model": "m" * 3 * LARGE}),
        b'{"x":"' + b"\xff" * 2 * LARGE + b'","model":"m"}',
    ],
    ids=[
        "before",
        "after",
        "between",
        "names",
        "numbers",
        "numbers and text",
        "number",
        "beyond ASCII",
        "prose",
        "space",
        "model",
        "no text",
    ],
)
def test_a_large_body_is_edited_as_a_small_one_is_rewritten(body: bytes) -> None:
    edited = named(body, "other")
    assert isinstance(edited, Edited)
    assert bytes(edited) == replace_model(body, "other")
    assert bytes(asking_usage(edited)) == with_usage(replace_model(body, "other"))
    assert bytes(asking_usage(body)) == with_usage(body)


@pytest.mark.parametrize("place", range(BLOCK - 24, BLOCK + 24))
@pytest.mark.parametrize("name", ["model", r"\u006d\u006F\u0064e\u006c"])
def test_a_field_is_found_at_the_edge_of_what_is_left_out(place: int, name: str) -> None:
    before = b'{"x":"' + PICTURE[: place - 8].encode() + b'",'
    body = before + f'"{name}":"m","y":"\\u00e9{PICTURE}\\n{PICTURE}"}}'.encode()
    assert bytes(named(body, "other")) == body.replace(b'"m"', b'"other"')


@pytest.mark.parametrize("name", ["mode", "models", "xmodel", 'x"model', "m" + PICTURE, PICTURE + "model"])
def test_no_other_name_becomes_the_models(name: str) -> None:
    body = encoded({name: "no", "x": {"model": "no", name: PICTURE}, "model": "m", "y": {name: "no"}})
    assert bytes(named(body, "other")) == body.replace(b'"m"', b'"other"')


@pytest.mark.parametrize("small", [b'{"model":"m"}', encoded({"model": "m", "x": "y" * (LARGE - 100)})])
def test_a_small_body_is_rewritten(small: bytes) -> None:
    assert named(small, "other") == replace_model(small, "other")
    assert asking_usage(small) == with_usage(small)


@pytest.mark.parametrize(
    "body",
    [
        {"x": PICTURE},
        {"model": 1, "x": PICTURE},
        {"x": PICTURE, "y": {"model": "m"}},
        {"model": None, "input": list(range(LARGE))},
    ],
)
def test_a_large_body_without_a_model_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(UnreplaceableModelError, match=r"^model: expected it once, as text$"):
        named(encoded(body), "other")


@pytest.mark.parametrize("others", [{"x": PICTURE}, {"input": list(range(LARGE))}])
def test_a_large_body_with_two_is_refused(others: dict[str, Any]) -> None:
    with pytest.raises(UnreplaceableModelError, match=r"^model: expected it once, as text$"):
        named(b'{"model":"m",' + encoded(others)[1:-1] + b',"model":"n"}', "other")


def test_a_body_may_be_edited_twice() -> None:
    once = named(encoded({"model": "m", "x": PICTURE}), "other")
    assert bytes(named(asking_usage(once), "third")) == encoded(
        {"model": "third", "x": PICTURE, "stream_options": {"include_usage": True}}
    ).replace(b', "stream_options": {"include_usage": true}', b',"stream_options":{"include_usage":true}')


def test_a_body_is_sent_in_pieces_of_a_quarter_mebibyte_that_are_no_copies() -> None:
    body = bytes(range(250)) * 2400
    edited = Edited(body, (Edit(1, 2, b"abc"), Edit(599_999, 600_000, b"")))
    sent = list(pieces(edited))
    assert b"".join(sent) == bytes(edited) == body[:1] + b"abc" + body[2:599_999]
    assert len(edited) == len(bytes(edited)) == 600_001
    assert [len(piece) for piece in sent] == [1, 3, 262_144, 262_144, 75_709]
    assert all(piece.obj is body for piece in sent[2:])
    assert [len(piece) for piece in pieces(body)] == [262_144, 262_144, 75_712]


def test_its_repr_holds_nothing_of_it() -> None:
    assert "secret" not in repr(Edited(b"secret", ()))


NAMES = st.sampled_from(["model", "mode", "", 'm"', "é"])
LEAVES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=4),
    st.builds(str.__mul__, st.sampled_from(["x", "é", "ab\\", 'a"model":"', "\n"]), st.integers(0, 2 * BLOCK)),
    st.builds(lambda length: [1] * length, st.integers(0, BLOCK)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.exhaustive
@settings(max_examples=30)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=5), st.integers(0, 5))
def test_any_large_body_is_edited_as_it_would_be_rewritten(fields: list[tuple[str, Any]], place: int) -> None:
    fields.insert(place, ("x", "y" * LARGE))
    body = b"{" + b",".join(encoded(name) + b":" + encoded(value) for name, value in fields) + b"}"
    try:
        expected = replace_model(body, "other")
    except UnreplaceableModelError as error:
        with pytest.raises(UnreplaceableModelError, match=str(error)):
            named(body, "other")
    else:
        assert bytes(named(body, "other")) == expected
