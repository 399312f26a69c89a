"""What a chunk of another stream looks like, once it fits into the one that a client reads."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.execution.chunks import Piece, read
from gateway.execution.outcome import Usage
from gateway.execution.rewriting import Frame, moved_tokens, recounted, rewritten

FRAME = Frame({"id": "first", "created": 1})
WORDS = st.sampled_from([None, "", "a", "bc"])
FUNCTIONS = st.fixed_dictionaries({}, optional={"name": WORDS, "arguments": WORDS})
CALLS = st.fixed_dictionaries(
    {"index": st.integers(0, 1)}, optional={"id": st.just("x"), "type": st.just("function"), "function": FUNCTIONS}
)
TEXTS = ["content", "refusal", "reasoning", "reasoning_content"]
DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "reasoning_details": st.sampled_from([None, [], [{"type": "reasoning.text"}]]),
        "tool_calls": st.one_of(st.none(), st.lists(CALLS, max_size=2)),
        **dict.fromkeys(TEXTS, WORDS),
    },
)


def event_of(data: bytes) -> dict[str, Any]:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    event: dict[str, Any] = json.loads(data[6:])
    return event


def again(event: object, *new: str, spent: int = 0) -> dict[str, Any]:
    return event_of(rewritten(json.dumps(event).encode(), new, FRAME, spent=spent))


def delta(**fields: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def said(event: object) -> tuple[Piece, ...] | None:
    chunk = read(json.dumps(event).encode())
    assert chunk is not None
    return chunk.pieces()


def texts_in(value: object) -> Iterator[str]:
    """Give every text that a client could read, wherever in an event it stands."""
    match value:
        case dict():
            for name, item in value.items():
                if name not in ("id", "type", "role", "object"):
                    yield from texts_in(item)
        case list():
            for item in value:
                yield from texts_in(item)
        case str():
            yield value
        case _:
            pass


@given(DELTAS, st.data())
def test_a_chunk_says_what_is_new_and_nothing_else(fields: dict[str, Any], data: st.DataObject) -> None:
    for detail in fields.get("reasoning_details") or ():
        detail["text"] = fields.get("reasoning") or "signed"
    event = delta(**fields)
    pieces = said(event)
    if pieces is None:
        return
    new = tuple(text and data.draw(st.sampled_from(["", "N", text])) for _, text in pieces)
    now = again(event, *new)
    left = said(now)
    assert left is not None
    assert [piece for piece in left if piece.text] == [
        Piece(piece.part, text) for piece, text in zip(pieces, new, strict=True) if text
    ]
    assert set(texts_in(now)) <= {"", *new}


def test_what_is_not_rewritten_stays() -> None:
    event = {**delta(content="ab", other=[1]), "model": "b", "system_fingerprint": None, "n": 10**30, "x": {"y": 0.1}}
    assert again(event, "b") == {**event, **delta(content="b", other=[1])}


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ({"id": "second", "created": 2, "object": "o"}, {"id": "first", "created": 1, "object": "o"}),
        ({"id": None}, {"id": "first"}),
        ({}, {}),
    ],
)
def test_id_and_created_are_the_first_streams(event: dict[str, object], fields: dict[str, object]) -> None:
    assert again({**event, "choices": []}) == {**fields, "choices": []}


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b'{"id":"a","created":1,"model":"m","choices":[]}', {"id": "a", "created": 1}),
        (b'{"id":null}', {"id": None}),
        (b'{"created":1}', {"created": 1}),
        (b"{}", {}),
        (b"[]", {}),
        (b"", {}),
        (b'{"id":"a"', {}),
        (b'{"id":"\xff"}', {}),
    ],
)
def test_a_frame_is_read_from_a_chunk(data: bytes, fields: dict[str, object]) -> None:
    assert Frame.of(data) == Frame(fields)


@pytest.mark.parametrize(
    ("fields", "new", "expected"),
    [
        ({"role": "assistant", "content": "ab"}, ["b"], {"content": "b"}),
        ({"role": "assistant", "content": ""}, [], {"content": ""}),
        ({"reasoning": "ab", "content": None}, ["b"], {"reasoning": "b", "content": None}),
        ({"reasoning_content": "ab"}, ["b"], {"reasoning_content": "b"}),
        (
            {"reasoning": "ab", "reasoning_content": "ab", "content": "c"},
            ["b", "c"],
            {"reasoning": "b", "reasoning_content": "b", "content": "c"},
        ),
        ({"reasoning": "", "reasoning_content": "ab"}, ["b"], {"reasoning": "", "reasoning_content": "b"}),
        ({"content": "a", "refusal": "bc"}, ["", "c"], {"content": "", "refusal": "c"}),
    ],
)
def test_text_is_put_in_its_place(fields: dict[str, object], new: list[str], expected: dict[str, object]) -> None:
    assert again(delta(**fields), *new) == delta(**expected)


def test_a_completions_text_is_put_in_its_place() -> None:
    event = {"choices": [{"index": 0, "text": "ab", "finish_reason": "stop"}]}
    assert again(event, "b") == {"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}


@pytest.mark.parametrize("choices", [[{"delta": None}], [{"delta": {}}], [{"delta": {"tool_calls": None}}], [], None])
def test_a_chunk_without_text_stays(choices: object) -> None:
    assert again({"choices": choices}) == {"choices": choices}


OPENING = {"index": 0, "id": "x", "type": "function"}


@pytest.mark.parametrize(
    ("call", "new", "expected"),
    [
        (
            {**OPENING, "function": {"name": "f", "arguments": ""}},
            ["f", ""],
            {**OPENING, "function": {"name": "f", "arguments": ""}},
        ),
        (
            {**OPENING, "function": {"name": "f", "arguments": '{"a'}},
            ["", '"a'],
            {"index": 0, "function": {"arguments": '"a'}},
        ),
        ({"index": 0, "function": {"arguments": "ab"}}, ["", "b"], {"index": 0, "function": {"arguments": "b"}}),
        ({**OPENING, "function": {"name": "f"}}, ["f", ""], {**OPENING, "function": {"name": "f"}}),
        ({**OPENING, "function": None}, ["", ""], {"index": 0, "function": None}),
        (OPENING, ["", ""], {"index": 0}),
        (
            {"index": 0, "id": None, "function": {"name": None, "arguments": "ab"}},
            ["", "b"],
            {"index": 0, "function": {"arguments": "b"}},
        ),
    ],
)
def test_a_tool_call_is_opened_once(call: dict[str, object], new: list[str], expected: dict[str, object]) -> None:
    assert again(delta(tool_calls=[call]), *new) == delta(tool_calls=[expected])


def test_tool_calls_are_rewritten_one_by_one() -> None:
    calls = [{**OPENING, "index": index, "function": {"name": "f", "arguments": "{}"}} for index in (0, 1)]
    now = again(delta(content="a", tool_calls=calls), "", "", "}", "f", "{}")
    assert now == delta(content="", tool_calls=[{"index": 0, "function": {"arguments": "}"}}, calls[1]])


@pytest.mark.parametrize(
    ("told", "spent", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, 3, {"prompt_tokens": 6, "completion_tokens": 5}),
        ({"prompt_tokens": 9, "completion_tokens": 2}, 0, {"prompt_tokens": 9, "completion_tokens": 2}),
        ({"prompt_tokens": 2, "completion_tokens": 2}, 3, {"prompt_tokens": 0, "completion_tokens": 4}),
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "x": {"y": 1}},
            3,
            {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11, "x": {"y": 1}},
        ),
        ({"prompt_tokens": 9}, 3, {"prompt_tokens": 6}),
        ({"completion_tokens": 2}, 3, {"completion_tokens": 2}),
        ({"prompt_tokens": None, "completion_tokens": 2}, 3, {"prompt_tokens": None, "completion_tokens": 2}),
        ({"prompt_tokens": "9", "completion_tokens": None}, 3, {"prompt_tokens": "9", "completion_tokens": None}),
        ({}, 3, {}),
        (None, 3, None),
        ([9], 3, [9]),
        ("9", 3, "9"),
    ],
)
def test_what_was_given_in_a_prompt_is_counted_as_generated(told: object, spent: int, expected: object) -> None:
    assert again({"choices": [], "usage": told}, spent=spent) == {"choices": [], "usage": expected}


@pytest.mark.parametrize(
    ("usage", "spent", "expected"),
    [
        (Usage(9, 2, 4, 1), 3, Usage(6, 5, 4, 1)),
        (Usage(9, 2), 0, Usage(9, 2)),
        (Usage(2, 2), 3, Usage(0, 4)),
        (Usage(9, None), 3, Usage(6, None)),
        (Usage(9, 10**10), 3, Usage(6, 10**10)),
        (Usage(None, 2), 3, Usage(None, 2)),
        (Usage(), 3, Usage()),
    ],
)
def test_usage_is_recounted_as_the_client_is_told(usage: Usage, spent: int, expected: Usage) -> None:
    assert recounted(usage, spent) == expected


@pytest.mark.parametrize(
    ("prompt", "spent", "moved"), [(9, 3, 3), (2, 3, 2), (0, 3, 0), (None, 3, 0), ("9", 3, 0), (9, 0, 0)]
)
def test_no_more_is_moved_than_there_is(prompt: object, spent: int, moved: int) -> None:
    assert moved_tokens(prompt, spent) == moved
