"""Events that are known by a template say what they would say if they were decoded."""

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.execution.chunks import Piece
from gateway.execution.completions import CompletionStream
from gateway.execution.joining import DiffersError
from gateway.execution.outcome import Usage
from gateway.execution.template import Template

CHAT = (
    'data: {"id":"a","object":"chat.completion.chunk","created":17,"model":"m","choices":[{"index":0,'
    '"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
SHAPES = [
    CHAT,
    'data:{"choices":[{"delta":{"content":"%s"}}]}\n\n',
    'data: {"usage": null, "choices": [{"delta": {"role": "assistant", "content": "%s"}, "index": 0}], "id": "a"}\n\n',
    'data: {"choices":[{"index":0,"text":"%s","finish_reason":null}],"model":"text"}\n\n',
    'data: {"choices":[{"delta":{"content":null,"reasoning_content":"%s","tool_calls":[]}}]}\n\n',
    'data: {"choices":[{"delta":{"reasoning":"%s","content":""}}],"error":null}\n\n',
]
ODD_SHAPES = [
    'data: {"choices":[{"delta":{"content":"%s","content":"content"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"content","content":"%s"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"same","content":"%s"}}],"choices":[{"delta":{"content":"same"}}]}\n\n',
    'data: {"choices":[{"delta":{"reasoning":"%s","reasoning_content":"%s"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s","reasoning":"%s"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}}],"content":"%s","x":"a:","y":" %s"}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"},"logprobs":{"content":[{"token":"%s","logprob":-1}]}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}}],"usage":[]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"},"index":1}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}},{"delta":{"content":"%s"}}]}\n\n',
    'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"%s","arguments":"%s"}}]}}]}\n\n',
    'data: {"choices":[{"delta":{"content":["%s"]}}]}\n\n',
    'data: {"choices":[{"delta":{"%s":"a","content":"b"}}]}\n\n',
    'data: {"choices":[{"delta":{"refusal":"%s"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}}],"x":NaN}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}}]}\r\n\r\n',
    'data: {"choices":[{"delta":\ndata: {"content":"%s"}}]}\n\n',
    'id: 1\ndata: {"choices":[{"delta":{"content":"%s"}}]}\n\n',
    'data: {"choices":[{"delta":{"content":"%s"}}]}\nid: 1\n\n',
    'data: {"error":{"message":"%s"}}\n\n',
    'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    "data: {%s\n\n",
    "data: [DONE]\n\n",
    "data: %s\n\n",
    ": %s\n\n",
    "\n",
]
WORDS = [
    " a",
    "a",
    ",",
    ":",
    "content",
    "text",
    "",
    " ",
    "}]}",
    "data: ",
    "größe 你好",
    "\N{GRINNING FACE}",
    "\N{NO-BREAK SPACE}",
]
ESCAPED = [r"\n", r"\"", r"\\", r"\u00e9", r"\ud83d", r"\ud83d\ude00", r"\u0022", r"\/", r"\x"]
RAW = ['"', "\\", '","', '":"', "\n", "\n\n", "\r", "\x00", "\x7f", '"}}]}\n\ndata: {"choices":[{"delta":{"content":"a']
BYTES = [b"\xff", b"\xc3", b"\xa9", b"\xed\xa0\xbd", b"\xf0\x9f\x98", b"\xef\xbb\xbf"]
TEXTS = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(WORDS), st.text(max_size=5).map(lambda text: json.dumps(text)[1:-1])
).map(str.encode) | st.sampled_from([*(text.encode() for text in (*ESCAPED, *RAW)), *BYTES])


def event(shape: str, text: bytes) -> bytes:
    return shape.encode().replace(b"%s", text)


def chat(text: str) -> bytes:
    return event(CHAT, text.encode())


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Draw events of a usual shape mostly, and some of others between them."""
    usual = draw(st.sampled_from(SHAPES))
    others = st.sampled_from(SHAPES) | st.sampled_from(ODD_SHAPES)
    shapes = draw(st.lists(st.just(usual) | st.just(usual) | st.just(usual) | others, max_size=14))
    return b"".join(event(shape, draw(TEXTS)) for shape in shapes)


@st.composite
def cut(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """Cut after each event, after some, or anywhere."""
    if draw(st.integers(0, 2)):
        several = draw(st.integers(1, 3))
        parts = [part + b"\n\n" for part in stream.split(b"\n\n")]
        return [b"".join(parts[place : place + several]) for place in range(0, len(parts), several)]
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]


def stream_of(*, learns: bool, hides_usage: bool = False, keeps: bool = True) -> CompletionStream:
    clock = itertools.count()
    return CompletionStream(lambda: float(next(clock)), hides_usage=hides_usage, keeps=keeps, learns=learns)


def known(relayed: CompletionStream) -> tuple[object, ...]:
    told = (relayed.usage, relayed.lost, relayed.tokens, relayed.said, relayed.malformed, relayed.opaque)
    ends = (relayed.finished, relayed.done, relayed.failed, relayed.complete, relayed.truncated)
    return (*told, *ends, relayed.size, relayed.first_content, relayed.last_words({"no": 1}))


def met(relayed: CompletionStream, chunks: Iterable[bytes], *, ends: bool) -> list[object]:
    """Feed it, and note all that is to be seen of it."""
    seen: list[object] = []
    try:
        for chunk in chunks:
            seen += [relayed.feed(chunk), known(relayed)]
        if ends:
            seen += [relayed.end(), known(relayed)]
    except DiffersError:
        seen.append(DiffersError)
    return seen


@pytest.mark.exhaustive
@settings(max_examples=200)
@given(st.data())
def test_nothing_but_the_time_tells_a_template_from_decoding(data: st.DataObject) -> None:
    draw = data.draw
    hides_usage, keeps = draw(st.booleans()), draw(st.sampled_from([True, True, False]))
    learning, decoding = (stream_of(learns=learns, hides_usage=hides_usage, keeps=keeps) for learns in (True, False))
    for how in (None, "continue", "replay"):
        chunks, ends = draw(streams().flatmap(cut)), draw(st.booleans())
        if how == "continue":
            learning.taken_over("continue")
            decoding.taken_over("continue")
        elif how == "replay":
            learning.taken_over("replay")
            decoding.taken_over("replay")
        assert met(learning, chunks, ends=ends) == met(decoding, chunks, ends=ends)
        if ends or learning.opaque:
            break


@pytest.mark.exhaustive
@given(st.sampled_from([*SHAPES, *ODD_SHAPES]), TEXTS, st.lists(TEXTS, max_size=3))
@settings(max_examples=500)
def test_an_event_of_any_shape_teaches_nothing_wrong(shape: str, first: bytes, texts: list[bytes]) -> None:
    chunks = [event(shape, text) for text in (first, *texts)]
    assert met(stream_of(learns=True), chunks, ends=True) == met(stream_of(learns=False), chunks, ends=True)


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        (ODD_SHAPES[5], [b",", b"a", b","]),
        (ODD_SHAPES[6], [b"a", b"b", b"a"]),
        (ODD_SHAPES[2], [b"same", b"b", b"same"]),
    ],
)
def test_an_event_that_says_a_text_twice_teaches_nothing_wrong(shape: str, texts: list[bytes]) -> None:
    chunks = [event(shape, text) for text in texts]
    assert met(stream_of(learns=True), chunks, ends=True) == met(stream_of(learns=False), chunks, ends=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_usual_events_one_is_decoded(shape: str) -> None:
    relayed = stream_of(learns=True)
    words = ["once", " upon", " a", " time", ",", " größe", " content", " text", ":", " m"]
    for word in words:
        chunk = event(shape, word.encode())
        assert relayed.feed(chunk) == (chunk, True)
    several = event(shape, b" and") + event(shape, b" so")
    assert relayed.feed(several) == (several, True)
    assert relayed.feed(several + b": ping\n\n") == (several + b": ping\n\n", True)
    assert relayed.feed(several[:-9]) + relayed.feed(several[-9:]) == (
        event(shape, b" and"),
        True,
        event(shape, b" so"),
        True,
    )
    assert [piece.text for piece in relayed.said] == ["".join(words) + " and so" * 3]
    assert (relayed.tokens, relayed._decoded) == (len(words) + 6, 1)


def test_what_ends_as_an_event_does_and_begins_otherwise_is_decoded() -> None:
    relayed = stream_of(learns=True)
    relayed.feed(chat("a"))
    ping = b": a" + CHAT.encode().rpartition(b"%s")[2]
    assert relayed.feed(ping) == (ping, False)
    assert relayed.tokens == 1


@pytest.mark.parametrize("text", [b"", b'"', rb"\n", rb"\"", b"\n", b"\x00", b"\xff", b'a","b":"c'])
def test_what_is_no_plain_text_is_decoded(text: bytes) -> None:
    learning, decoding = stream_of(learns=True), stream_of(learns=False)
    chunks = [chat("a"), event(CHAT, text), chat("b"), chat("c")]
    assert met(learning, chunks, ends=False) == met(decoding, chunks, ends=False)
    assert learning._template is not None
    assert not learning.repeats(event(CHAT, text))


def test_an_event_cut_short_is_no_event() -> None:
    """Where prefix and suffix overlap both are there, and no text between them."""
    relayed = stream_of(learns=True)
    overlapping = 'data: {"choices":[{"delta":{"content":"%s","content":"%s"}}]}\n\n'
    relayed.feed(event(overlapping, b"a"))
    short = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    assert relayed.feed(short) == (short, True)
    assert relayed.said == (Piece("content", "aa"),)


@pytest.mark.parametrize(
    "last", [event(CHAT, b"\xc3"), event(CHAT, b""), event(CHAT, b'"'), chat("b")[:-1], chat("b")[:-9]]
)
@pytest.mark.parametrize("keeps", [True, False])
def test_several_events_in_one_chunk_are_read_one_by_one_where_they_differ(last: bytes, *, keeps: bool) -> None:
    chunks = [chat("a"), chat("b") + chat("ä"), chat("b") + last, b"\n", chat("c") + last + chat("d"), chat("e") * 3]
    learning, decoding = stream_of(learns=True, keeps=keeps), stream_of(learns=False, keeps=keeps)
    assert met(learning, chunks, ends=True) == met(decoding, chunks, ends=True)


def test_events_that_never_repeat_are_not_learnt_for_ever() -> None:
    relayed = stream_of(learns=True)
    for number in range(200):
        relayed.feed(chat("a").replace(b'"usage":null', b'"obfuscation":"%d"' % number))
    assert (relayed.tokens, relayed._template, relayed._lessons) == (200, None, 4)


def test_events_that_repeat_for_a_while_are_learnt_again() -> None:
    """Ollama and llama.cpp write the second into `created`."""
    relayed = stream_of(learns=True)
    for number in range(200):
        relayed.feed(chat("a").replace(b"17", b"%d" % (number // 4)))
    assert (relayed.tokens, relayed._decoded) == (200, 50)


def test_a_text_that_stands_there_in_another_form_costs_no_lesson() -> None:
    relayed = stream_of(learns=True)
    relayed.feed(chat("a"))
    for text in (r"\u00e9", r"\n", r"\u4f60\u597d") * 9:
        relayed.feed(chat(text))
    assert (relayed._lessons, relayed.feed(chat("b")), relayed._decoded) == (1, (chat("b"), True), 28)


def test_what_follows_a_text_of_another_part_is_put_behind_it() -> None:
    relayed = stream_of(learns=True)
    call = b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}\n\n'
    for chunk in (chat("a"), chat("b"), call, chat("c"), chat("d"), event(SHAPES[4], b"hm"), chat("e")):
        relayed.feed(chunk)
    parts = [("content", "ab"), ("tool 0 arguments", "{}"), ("content", "cd"), ("reasoning", "hm"), ("content", "e")]
    assert relayed.said == tuple(Piece(*part) for part in parts)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_template_keeps_no_more_than_decoding_does(*, keeps: bool) -> None:
    relayed = stream_of(learns=True, keeps=keeps)
    for _ in range(17):
        relayed.feed(chat("ä" * (1 << 16)))
    assert (relayed.opaque, relayed.said, relayed.tokens, relayed._decoded) == (True, (), 17, 1)


def test_after_the_end_every_event_is_decoded() -> None:
    relayed = stream_of(learns=True)
    finish = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    for chunk in (chat("a"), chat("b"), finish, chat("c"), chat("d")):
        relayed.feed(chunk)
    assert (relayed.tokens, relayed._decoded) == (4, 2)  # that was no end
    for chunk in (finish, b"data: [DONE]\n\n", chat("e"), chat("f")):
        relayed.feed(chunk)
    assert (relayed.tokens, relayed._decoded, relayed.complete) == (6, 4, True)


def test_usage_beside_a_text_is_told_of_each_time() -> None:
    relayed = stream_of(learns=True)
    for number in range(9):
        relayed.feed(event(ODD_SHAPES[7], b"a").replace(b"4", b"%d" % number))
    assert (relayed.usage, relayed._lessons) == (Usage(3, 8), 0)


def test_a_text_is_not_taken_for_one_that_stands_elsewhere() -> None:
    elsewhere = event('data: {"choices":[{"delta":{"content":"\\u0061"}}],"model":"%s"}\n\n', b"a")
    between = event('data: {"choices":[{"delta":{"content":"%s"}}],"x":"a:","y":1}\n\n', b",")
    for chunk, text in ((elsewhere, "a"), (between, ",")):
        template = Template.of(chunk, "content", text)
        assert template is not None
        assert not template.holds(text)


@pytest.mark.parametrize("first", [b'data: {"error":{"message":"no"}}\n\n', b"data: {cut\n\n"])
def test_what_stands_before_known_events_is_read(first: bytes) -> None:
    relayed = stream_of(learns=True)
    for text in ("a", "b", "c"):
        relayed.feed(chat(text))
    assert relayed.known is not None
    passed, _ = relayed.feed(first + chat("d") + chat("e"))
    assert first not in passed
    assert (relayed.failed, relayed.malformed) == ((True, 0) if b"error" in first else (False, 1))
