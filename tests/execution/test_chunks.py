"""What an event of a stream says, whoever wrote it."""

import json

import pytest

from gateway.execution.chunks import (
    Chunk,
    MalformedError,
    Piece,
    is_done,
    plain,
    read,
)
from gateway.execution.outcome import Usage

Pieces = list[tuple[str, str]]


def delta(**fields: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}).encode()


def called(*calls: dict[str, object]) -> bytes:
    return delta(tool_calls=list(calls))


def chunk_of(event: bytes) -> Chunk:
    chunk = read(event)
    assert chunk is not None
    return chunk


@pytest.mark.parametrize(
    "event",
    [
        delta(content="a"),
        delta(content=[{"type": "thinking"}]),
        delta(role="assistant", content=None, reasoning_content="vllm thinks"),
        delta(content="", reasoning="openrouter thinks"),
        delta(content="", reasoning_details=[{"type": "reasoning.encrypted"}]),
        delta(refusal="no"),
        delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]),
        delta(function_call={"name": "f"}),
        delta(audio={"data": "AA"}),
        delta(images=[{"type": "image_url", "image_url": {"url": "data:"}}]),
        b'{"choices": [{"text": "completion", "finish_reason": null}]}',
        b'{"choices": [{"delta": {}}, {"delta": {"content": "second choice"}}]}',
    ],
)
def test_content_is_seen(event: bytes) -> None:
    assert chunk_of(event).content


@pytest.mark.parametrize(
    "event",
    [
        delta(role="assistant", content="", refusal=None, tool_calls=[]),
        delta(),
        b'{"choices": [{"delta": null}]}',
        b'{"choices": [{"text": ""}]}',
        b'{"choices": [], "usage": {"prompt_tokens": 1}}',
        b'{"error": {"message": "content"}}',
        b"{}",
    ],
)
def test_no_content_is_seen(event: bytes) -> None:
    assert not chunk_of(event).content


@pytest.mark.parametrize("event", [b'{"choices": [1]}', b'{"choices": [{"delta": "a"}]}', b"[]", b"1", b'"a"', b"null"])
def test_of_json_of_another_shape_nothing_is_known(event: bytes) -> None:
    assert read(event) is None


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"{",
        b"\xff",
        b'{"choices": [{"delta": {"content": "\xff"}}]}',
        b'{"choices": []}{}',
        b'{"a": ' + b"[" * 5000,
    ],
)
def test_what_is_no_json_is_told_apart(event: bytes) -> None:
    with pytest.raises(MalformedError):
        read(event)


@pytest.mark.parametrize(
    "event",
    [
        rb'{"choices": [{"delta": {"content": "half a pair \ud83d"}}]}',
        b'{"choices": [{"delta": {"content": "a"}, "score": NaN}]}',
        b'{"choices": [{"delta": {"content": "a"}, "score": -Infinity}]}',
    ],
)
def test_what_other_clients_read_is_not_malformed(event: bytes) -> None:
    """Python's and JavaScript's clients read it (RFC 8259 8.2; `json`): to leave it out would lose text."""
    assert json.loads(event)
    read(event)


@pytest.mark.parametrize(
    ("event", "finished"),
    [
        (b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', True),
        (b'{"choices":[{"delta":{},"finish_reason" : "tool_calls"}],"usage":null}', True),
        (b'{"choices":[{"index":0},{"index":1,"finish_reason":"length"}]}', True),
        (b'{"choices":[{"text":"a","finish_reason":"stop"}]}', True),
        (b'{"choices":[{"delta":{"content":"data: [DONE]"},"finish_reason":null}]}', False),
        (b'{"choices":[{"delta":{"content":"\\"finish_reason\\": \\"stop\\""}}]}', False),
        (b'{"choices":[{"delta":{"content":"x"},"finish_reason":""}],"error":null}', False),
        (b'{"finish_reason":"stop","choices":[]}', False),
    ],
)
def test_a_finish_reason_is_a_choices_own(event: bytes, *, finished: bool) -> None:
    assert chunk_of(event).finished == finished


@pytest.mark.parametrize(
    ("data", "done"),
    [(b"[DONE]", True), (b" [DONE] ", True), (b'"[DONE]"', False), (b"[done]", False), (b"", False), (b"[]", False)],
)
def test_done_is_a_word_of_its_own(data: bytes, *, done: bool) -> None:
    assert is_done(data) == done


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (b'{"error":{"message":"overloaded"}}', {"message": "overloaded"}),
        (b'{"error": "overloaded"}', "overloaded"),
        (b'{"error": null, "choices": []}', None),
        (delta(content='"error": "no"'), None),
    ],
)
def test_an_error_is_seen(event: bytes, error: object) -> None:
    assert chunk_of(event).error == error


def test_null_is_no_choice() -> None:
    """Servers in Go write it for an empty list."""
    chunk = read(b'{"choices":null,"usage":{"prompt_tokens":1}}')
    assert chunk is not None
    assert (chunk.content, chunk.finished, chunk.pieces(), chunk.told_usage) == (False, False, (), Usage(1))


@pytest.mark.parametrize(
    ("event", "pieces"),
    [
        (delta(content="a"), [("content", "a")]),
        (delta(role="assistant", content=""), []),
        (delta(content=None), []),
        (b"{}", []),
        (b'{"choices":[]}', []),
        (b'{"choices":[{"delta":null}]}', []),
        (b'{"choices":[{"index":0,"text":"a"}]}', [("text", "a")]),
        (b'{"choices":[{"delta":{"content":"a"}}]}', [("content", "a")]),
        (delta(reasoning_content="a"), [("reasoning", "a")]),
        (delta(reasoning="a"), [("reasoning", "a")]),
        (delta(reasoning="a", reasoning_content="a"), [("reasoning", "a")]),
        (delta(reasoning="a", reasoning_content=None, content="b"), [("reasoning", "a"), ("content", "b")]),
        (delta(reasoning="", reasoning_content="a"), [("reasoning", "a")]),
        (delta(refusal="no"), [("refusal", "no")]),
        (
            called({"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}),
            [("tool 0 name", "f"), ("tool 0 arguments", "{}")],
        ),
        (
            called({"index": 3, "function": {"arguments": "{"}}),
            [("tool 3 name", ""), ("tool 3 arguments", "{")],
        ),
        (called({"function": {"name": "f"}}), [("tool 0 name", "f"), ("tool 0 arguments", "")]),
        (called({"index": 1}), [("tool 1 name", ""), ("tool 1 arguments", "")]),
        (called({"index": 1, "function": None}), [("tool 1 name", ""), ("tool 1 arguments", "")]),
        (
            called({"index": 0, "function": {"name": "f"}}, {"index": 1, "function": {"name": "g"}}),
            [("tool 0 name", "f"), ("tool 0 arguments", ""), ("tool 1 name", "g"), ("tool 1 arguments", "")],
        ),
        (
            delta(content="a", tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
            [("content", "a"), ("tool 0 name", ""), ("tool 0 arguments", "{")],
        ),
    ],
)
def test_what_is_said_is_given_by_its_part(event: bytes, pieces: Pieces) -> None:
    assert chunk_of(event).pieces() == tuple(Piece(*piece) for piece in pieces)


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":[{"index":1,"delta":{"content":"second choice"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}',
        b'{"choices":[{"index":"0","delta":{"content":"a"}}]}',
        b'{"choices":[{"text":["a"]}]}',
        delta(content=[{"type": "thinking"}]),
        delta(content={"a": 1}),
        delta(content=1),
        delta(content="a", reasoning=["b"]),
        delta(reasoning_details=[{"type": "reasoning.encrypted"}]),
        delta(reasoning="", reasoning_details=[{"type": "reasoning.encrypted"}]),
        delta(refusal=True),
        delta(function_call={"name": "f"}),
        delta(audio={"data": "AA"}),
        delta(images=[{"type": "image_url", "image_url": {"url": "data:"}}]),
        delta(tool_calls="f"),
        delta(tool_calls=["f"]),
        called({"index": None}),
        called({"index": "0", "function": {"name": "f"}}),
        called({"index": 0, "function": "f"}),
        called({"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}),
        called({"index": 0, "id": "x", "function": {"name": "", "arguments": ""}}),
        called({"index": 0, "type": "custom", "custom": {"name": "f", "input": "a"}}),
    ],
)
def test_what_cannot_be_said_again_is_no_text(event: bytes) -> None:
    assert chunk_of(event).pieces() is None


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (b'{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}', Usage(1, 2)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":7}}', Usage(9, None, 7)),
        (b'{"completion_tokens":8,"completion_tokens_details":{"reasoning_tokens":6}}', Usage(None, 8, None, 6)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":null}', Usage(9)),
        (b"{}", Usage()),
        (b"null", None),
        (b"[]", None),
        (b'"1"', None),
        (b'{"prompt_tokens":"1"}', Usage()),
        (b'{"prompt_tokens":-5,"completion_tokens":7}', Usage(None, 7)),
        (b'{"prompt_tokens":0,"completion_tokens":99999999999999999999999999}', Usage(0, None)),
        (b'{"prompt_tokens":10000000000,"completion_tokens":10000000001}', Usage(10**10, None)),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":-1}}', Usage(9)),
        (b'{"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":1e30}}', Usage(None, 9)),
    ],
)
def test_an_event_tells_of_usage(told: bytes, usage: Usage | None) -> None:
    assert chunk_of(b'{"choices":[],"usage":' + told + b"}").told_usage == usage
    assert chunk_of(b'{"choices":[]}').told_usage is None


@pytest.mark.parametrize(
    ("delta", "pieces"),
    [
        ('{"content":"a"}', (Piece("content", "a"),)),
        ('{"content":"a","refusal":"no"}', (Piece("content", "a"), Piece("refusal", "no"))),
        ('{"content":"a","reasoning":"so"}', (Piece("reasoning", "so"), Piece("content", "a"))),
        ('{"content":["a"]}', None),
        ('{"content":""}', ()),
    ],
)
def test_a_text_alone_is_read_as_one_among_others(delta: str, pieces: tuple[Piece, ...] | None) -> None:
    chunk = chunk_of(f'{{"choices":[{{"index":0,"delta":{delta}}}]}}'.encode())
    said = plain(chunk)
    assert chunk.pieces() == pieces
    assert said == (pieces[0] if pieces and len(pieces) == 1 else None)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b'{"choices":[{"text":"a"}]}', ("text", "a")),
        (b'{"choices":[{"text":"a","delta":null,"index":null,"finish_reason":""}]}', ("text", "a")),
        (b'{"choices":[{"text":"a","delta":{"content":""}}]}', ("text", "a")),
        (b'{"choices":[{"text":"a","delta":{"content":"b"}}]}', None),
        (b'{"choices":[{"text":["a"]}]}', None),
        (delta(reasoning="a", reasoning_content=None), ("reasoning", "a")),
        (delta(reasoning="a", reasoning_content="b", content=""), ("reasoning", "b")),
        (delta(reasoning="a", reasoning_details=[1]), None),
        (delta(content="a", function_call={}), ("content", "a")),
        (delta(content="a", audio={"data": "AA"}), None),
        (b'{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}', ("content", "a")),
        (b'{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}', None),
        (b'{"choices":[{"delta":{"content":"a"},"index":1}]}', None),
        (b'{"choices":[{"delta":{"content":"a"}},{}]}', None),
        (b'{"choices":[{}]}', None),
        (b'{"choices":[]}', None),
        (b"{}", None),
    ],
)
def test_a_chunk_that_says_one_text_is_plain(event: bytes, said: tuple[str, str] | None) -> None:
    chunk = chunk_of(event)
    assert plain(chunk) == said
    if said is not None:
        assert (chunk.content, chunk.finished, chunk.pieces()) == (True, False, (said,))


def test_a_chunk_that_says_two_things_is_not_plain() -> None:
    for other in ("reasoning", "reasoning_content", "refusal"):
        assert plain(chunk_of(delta(content="a", **{other: "b"}))) is None
