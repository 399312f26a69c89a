import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.execution.outcome import Usage
from gateway.execution.sse import ChatStream, EventScanner, meaning, usage_in

ENDS = [b"\n", b"\r", b"\r\n"]
DATA = [b"data: a", b"data:b", b"data", b"data: ", b"data:  c", b"data: a:b", "data: äö€😀".encode()]
OTHERS = [
    b"",
    b"",
    b": comment",
    b"event: e",
    b"id: 1",
    b"dat",
    b"datab: x",
    b"DATA: x",
    b"\xef\xbb\xbfdata: a",
    b"\xff",
]
LINES = st.sampled_from([*DATA, *OTHERS])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.tuples(LINES, st.sampled_from(ENDS)), max_size=20))
    return b"".join(itertools.chain.from_iterable(lines)) + draw(LINES)


def scan(*chunks: bytes) -> list[bytes]:
    scanner = EventScanner()
    return [event for chunk in chunks for event in scanner.feed(chunk)]


def one_by_one(stream: bytes) -> list[bytes]:
    return scan(*(stream[place : place + 1] for place in range(len(stream))))


def by_the_book(stream: bytes) -> list[bytes]:
    """Read a whole stream as the WHATWG standard's 9.2.6 says."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return events


@given(streams(), st.data())
@example(b"\xef\xbb\xbfdata: a\r\n\r\ndata: b\r\rdata: c\n\n", None)
def test_any_cutting_gives_the_same_events(stream: bytes, data: st.DataObject | None) -> None:
    assert scan(stream) == one_by_one(stream) == by_the_book(stream)
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        pieces = [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]
        assert scan(*pieces) == scan(stream)


def test_a_long_line_is_one_event_and_costs_linear_work() -> None:
    line = b"data: " + b"x" * 5_000_000
    pieces = [line[place : place + 1000] for place in range(0, len(line), 1000)]
    assert scan(*pieces, b"\n", b"\n") == [b"x" * 5_000_000]


def delta(**fields: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}).encode()


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
        b'{"choices": [{"text": "completion", "finish_reason": null}]}',
        b'{"choices": [{"delta": {}}, {"delta": {"content": "second choice"}}]}',
    ],
)
def test_content_is_seen(event: bytes) -> None:
    assert meaning(event).content


@pytest.mark.parametrize(
    "event",
    [
        delta(role="assistant", content="", refusal=None, tool_calls=[]),
        delta(),
        b'{"choices": [{"delta": null}]}',
        b'{"choices": [{"text": ""}]}',
        b'{"choices": [], "usage": {"prompt_tokens": 1}}',
        b'{"error": {"message": "content"}}',
        b'{"choices": null}',
        b"[DONE]",
        b"",
        b"{",
        b"\xff",
        b'{"choices": [{"delta": {"content": "\xff"}}]}',
        b'{"a": ' + b"[" * 5000,
    ],
)
def test_no_content_is_seen(event: bytes) -> None:
    assert not meaning(event).content


def stream(*chunks: bytes) -> ChatStream:
    chat = ChatStream()
    for chunk in chunks:
        chat.feed(chunk)
    return chat


CONTENT = b"data: " + delta(content="hi") + b"\n\n"


def test_content_comes_with_its_event() -> None:
    chat = ChatStream()
    assert not chat.feed(b": comment\n\ndata: " + delta(role="assistant") + b"\n\n" + CONTENT[:-1])
    assert chat.feed(b"\n")
    assert not chat.feed(b": comment\n\n")


def test_an_event_without_end_is_content() -> None:
    chat = stream(b"data: " + b"x" * (1 << 20))
    assert chat.feed(b"x")
    pings = [b": ping\n\n" + b"x" * 60_000 + b"\n\n"] * 40
    chat = ChatStream()
    assert not any(chat.feed(ping) for ping in pings)


@pytest.mark.parametrize(
    "end",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE]",
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason" : "tool_calls"}],"usage":null}\n\n: bye\n\n',
        b'data: {"error":{"message":"overloaded"}}\n\n',
        b'data: {"error": "overloaded"}\n\n',
    ],
)
def test_a_whole_stream_is_not_truncated(end: bytes) -> None:
    chat = stream(CONTENT, end)
    chat.end()
    assert not chat.truncated


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b": comment\n\n",
        b'data: {"choices":[{"delta":{"content":"data: [DONE]"},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\": \\"stop\\""}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":""}],"error":null}\n\n',
    ],
)
def test_a_stream_that_hides_a_loss_is_truncated(end: bytes) -> None:
    for before in (CONTENT, b""):
        chat = stream(before, end)
        chat.end()
        assert chat.truncated == bool(before + end)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r"])
def test_a_boundary_is_an_empty_line(end: bytes) -> None:
    assert stream(b"data: a" + end).at_boundary
    assert stream(b"data: a" + end[:1], end[1:]).at_boundary
    assert not stream(b"data: a" + end, b"d").at_boundary


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_inside_an_event_is_no_boundary(end: bytes) -> None:
    assert not stream(b"data: a" + end).at_boundary


def test_a_stream_begins_at_a_boundary() -> None:
    assert stream().at_boundary


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}', Usage(1, 2)),
        (b'{"usage": {"prompt_tokens": 1, "total_tokens": 1}}', Usage(1, None)),
        (
            b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":7}}}',
            Usage(9, None, 7),
        ),
        (
            b'{"usage":{"completion_tokens":8,"completion_tokens_details":{"reasoning_tokens":6}}}',
            Usage(None, 8, None, 6),
        ),
        (b'{"usage":{"prompt_tokens":9,"prompt_tokens_details":null}}', Usage(9)),
        (b'"usage":{"a":{"b":{"c":"}{"}},"prompt_tokens":1,"completion_tokens":2,"d":["\\"}"]},"x":1', Usage(1, 2)),
        (b'data: {"usage":{"completion_tokens":1}}\n\ndata: {"usage":{"completion_tokens":2}}\n\n', Usage(None, 2)),
        (b'{"usage":{"completion_tokens":1}}\n\ndata: {"usage":null}\n\ndata: [DONE]\n\n', Usage(None, 1)),
        (b'{"usage":{"completion_tokens":1}}\n\ndata: {"usage":{"completion_tok', Usage(None, 1)),
        (
            b'{"usage":{"completion_tokens":1},"choices":[{"text":"\\"usage\\":{\\"completion_tokens\\":9}"}]}',
            Usage(None, 1),
        ),
        (b'\x80\xff"usage":{"prompt_tokens":1}', Usage(1, None)),
        (b'{"usage":{"prompt_tokens":"1"}}', None),
        (b'{"usage":{"prompt_tokens":1', None),
        (b'{"usage":{"a":' + b"[" * 4000, None),
        (b'{"usage":[]}', None),
        (b"", None),
    ],
)
def test_usage_is_the_last_whole_one(tail: bytes, usage: Usage | None) -> None:
    assert usage_in(tail) == usage
    assert stream(tail).usage == usage
