"""What a client reads of a stream, and of the streams that take over from it."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.execution.chunks import Piece, read
from gateway.execution.completions import CompletionStream
from gateway.execution.joining import DiffersError, Transcript
from gateway.execution.outcome import Usage
from gateway.execution.sse import EventScanner
from gateway.execution.takeover import Rescue

Runs = tuple[Piece, ...]
MIB = 1 << 20
TEXT = "once upon a time there was a box, "


def sse(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def written(name: str, delta: dict[str, object], finish: str | None = None, usage: object = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    told = {} if usage is None else {"usage": usage}
    return sse({"id": name, "created": len(name), "model": name, "choices": choices, **told})


def chunk(finish: str | None = None, usage: object = None, **delta: object) -> bytes:
    return written("first", delta, finish, usage)


def second(finish: str | None = None, usage: object = None, **delta: object) -> bytes:
    return written("second", delta, finish, usage)


def spent(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def usage_of(prompt: int, completion: int, name: str = "first") -> bytes:
    return sse({"id": name, "created": len(name), "choices": [], "usage": spent(prompt, completion)})


ROLE = chunk(role="assistant", content="")
CONTENT = chunk(content="hi")
FINISH = chunk(finish="stop")
USAGE = usage_of(3, 4)
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + CONTENT + FINISH + DONE
FAILED = sse({"error": {"message": "overloaded"}})
COMMENT = b": keep-alive\n\n"
SAID = {"message": "no"}
NO = b'data: {"error":{"message":"no"}}\n\n'


def passing(*, hides_usage: bool = False, keeps: bool = True) -> CompletionStream:
    clock = itertools.count()
    return CompletionStream(lambda: float(next(clock)), hides_usage=hides_usage, keeps=keeps)


def feed(relayed: CompletionStream, *chunks: bytes) -> bytes:
    return b"".join(relayed.feed(chunk)[0] for chunk in chunks)


def events(stream: bytes) -> list[Any]:
    """Give what a client reads; `[DONE]` is text."""
    scanner = EventScanner()
    found = scanner.cut(stream)
    assert b"".join(found) == stream
    return [
        "[DONE]" if data == b"[DONE]" else json.loads(data) for data in map(scanner.data, found) if data is not None
    ]


def answer(stream: bytes) -> Runs:
    """Join what a stream's events say."""
    scanner, transcript = EventScanner(), Transcript()
    for data in map(scanner.data, scanner.cut(stream)):
        said = read(data) if data and data != b"[DONE]" else None
        for piece in (said.pieces() if said else None) or ():
            transcript.add(*piece)
    return transcript.runs()


def content(stream: bytes) -> str:
    runs = answer(stream)
    assert [run.part for run in runs] in ([], ["content"])
    return runs[0].text if runs else ""


@st.composite
def cut(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]


@pytest.mark.parametrize(
    "stream",
    [
        WHOLE,
        b"\xef\xbb\xbf" + WHOLE,
        WHOLE.replace(b"\n", b"\r\n") + CONTENT,
        WHOLE.replace(b"\n", b"\r"),
        WHOLE.replace(b"data: ", b"data:"),
        COMMENT + WHOLE + COMMENT + b"\n\n" + COMMENT,
        b"retry: 3\n\nevent: chunk\nid: 1\n" + WHOLE,
        ROLE + CONTENT + b"data: \n\n" + b"data\n\n" + FINISH + DONE,
        b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n' + FINISH + USAGE + DONE,
        sse({"choices": [{"index": 1, "delta": {"content": "a"}}]}) + FINISH + DONE,
        sse(1) + sse({"choices": [1]}) + sse({}) + WHOLE,
        sse({"choices": [], "error": None}) + WHOLE + WHOLE,
        b'data: {"choices":[{"delta":{"content":"a"}}],"x":"\xff","y":1e999}\n\n' + FINISH + DONE,
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_a_whole_stream_passes_byte_for_byte(stream: bytes, size: int) -> None:
    relayed = passing()
    chunks = [stream[place : place + size] for place in range(0, len(stream), size)]
    assert feed(relayed, *chunks) + relayed.end() == stream
    assert (relayed.size, relayed.malformed) == (len(stream), 0)
    assert (relayed.complete, relayed.truncated, relayed.failed) == (True, False, False)


@pytest.mark.parametrize(
    "left_out",
    [b"data: {\n\n", b"data: oops\n\n", b"data: {}{}\n\n", b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'],
)
def test_what_is_no_json_is_left_out_and_counted(left_out: bytes) -> None:
    relayed = passing()
    assert feed(relayed, ROLE + left_out + CONTENT, left_out, FINISH + DONE) == WHOLE
    assert (relayed.malformed, relayed.complete, relayed.opaque) == (2, True, False)


@pytest.mark.parametrize("text", [rb"half a pair \ud83d", rb"\ude00"])
def test_text_that_other_clients_read_is_not_left_out(text: bytes) -> None:
    event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text
    assert json.loads(event[6:])
    relayed = passing()
    assert feed(relayed, event) == event
    assert relayed.malformed == 0


@pytest.mark.parametrize(
    "end", [b"", COMMENT, ROLE, USAGE, sse(1), b"data: {\n\n", sse({"choices": [], "error": None})]
)
def test_a_stream_without_an_end_is_truncated(end: bytes) -> None:
    relayed = passing()
    feed(relayed, CONTENT, end)
    assert relayed.end() == b""
    assert (relayed.truncated, relayed.complete, relayed.failed) == (True, False, False)


@pytest.mark.parametrize(
    "error",
    [
        FAILED,
        sse({"error": "no"}),
        sse({"error": {}, "choices": [{"delta": {}}]}),
        sse({"choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}),
        sse({"choices": [{"delta": {"content": "x"}, "error": {"code": 502, "message": "no"}}]}),
        b'error: {"code":500,"message":"no"}\n\n',
        b'error: {"code":500,"message":"no"}\r\n\r\n',
        b'error: {"code":500,"message":"n\xf6"}\n\n',
    ],
)
@pytest.mark.parametrize("rest", [b"", CONTENT, DONE, FINISH + DONE, b"data: {\n\n", b"data: " + b"x" * (MIB + 1)])
def test_nothing_passes_after_an_error(error: bytes, rest: bytes) -> None:
    relayed = passing()
    assert feed(relayed, CONTENT + error + rest, rest) == CONTENT
    assert relayed.end() == b""
    assert (relayed.failed, relayed.truncated, relayed.complete, relayed.malformed) == (True, False, False, 0)
    assert (relayed.last_words(SAID), relayed.opaque) == (NO, False)


@pytest.mark.parametrize(
    ("rest", "passed", "complete"),
    [
        (b"", b"", False),
        (FINISH, FINISH + DONE, True),
        (FINISH[:-1], FINISH[:-1] + b"\n\n" + DONE, True),
        (FINISH[:-2], FINISH[:-2] + b"\n\n" + DONE, True),
        (FINISH[:-2] + b"\r\n", FINISH[:-2] + b"\r\n\n\n" + DONE, True),
        (FINISH[:-3], b"", False),
        (FINISH + DONE, FINISH + DONE, True),
        (FINISH + DONE[:-2], FINISH + DONE[:-2], True),
        (FINISH + DONE[:-3], FINISH + DONE, True),
        (FINISH + CONTENT[:-5], FINISH + DONE, True),
        (FINISH + COMMENT[:-2], FINISH + DONE, True),
        (FINISH + USAGE[:-2], FINISH + USAGE[:-2] + b"\n\n" + DONE, True),
        (DONE[:-1], DONE[:-1], True),
        (DONE[:-2], DONE[:-2], True),
        (DONE[:-3], b"", False),
        (CONTENT[:-1], b"", False),
        (CONTENT[:-2], b"", False),
        (CONTENT[:-3], b"", False),
        (COMMENT[:-2], b"", False),
        (FAILED[:-2], b"", False),
        (b"error: {}\n", b"", False),
        (FINISH + b"error: {}\n\n" + DONE, FINISH + DONE, True),
        (b"data: 1", b"", False),
    ],
)
def test_a_stream_that_ends_is_ended_well_if_it_is_whole(rest: bytes, passed: bytes, *, complete: bool) -> None:
    relayed = passing()
    got = feed(relayed, CONTENT + rest) + relayed.end()
    assert got.rstrip() == (CONTENT + passed).rstrip()
    assert (relayed.complete, relayed.size, relayed.malformed) == (complete, len(got), 0)
    assert (relayed.failed, relayed.opaque, relayed.end()) == (False, False, b"")


ENDING = chunk("stop", content="a")


@pytest.mark.parametrize(
    ("stream", "complete", "whole"),
    [
        ([ENDING], True, True),
        ([ENDING, ENDING], False, True),
        ([ENDING, CONTENT], False, False),
        ([FINISH, CONTENT, FINISH], False, True),
        ([FINISH, chunk(tool_calls=[{"index": 0, "function": {"name": "f"}}])], False, False),
        ([FINISH, chunk(reasoning_content="hm")], False, False),
        ([ENDING, ENDING, DONE], True, True),
        ([FINISH, ROLE, FINISH, USAGE, COMMENT], True, True),
        ([FINISH, DONE, CONTENT], True, True),
    ],
)
@pytest.mark.parametrize("is_one", [True, False])
def test_who_goes_on_after_a_finish_reason_was_not_over(
    stream: list[bytes], *, complete: bool, whole: bool, is_one: bool
) -> None:
    """One that sent a finish reason in its first event, or in each, was ended a second later, and nobody was told."""
    relayed = passing()
    sent = b"".join([CONTENT, *stream])
    assert feed(relayed, *([sent] if is_one else [CONTENT, *stream])) == sent
    assert (relayed.complete, relayed.whole, relayed.truncated) == (complete, whole, not whole)
    assert relayed.end() == (DONE if whole and DONE not in stream else b"")


def test_an_error_after_finish_reasons_that_were_none_is_one() -> None:
    relayed = passing()
    assert feed(relayed, ENDING, ENDING, FAILED) == ENDING * 2
    assert (relayed.failed, relayed.complete) == (True, False)
    relayed.taken_over("replay")
    assert content(feed(relayed, second(content="aa"), second("stop"))) == ""
    assert (relayed.failed, relayed.complete) == (False, True)


@pytest.mark.parametrize("rest", [b"", b"\n", COMMENT[:-2], CONTENT[:-2], FAILED[:-2], b"data: {"])
def test_of_what_was_cut_nothing_stands_before_the_last_words(rest: bytes) -> None:
    relayed = passing()
    got = feed(relayed, CONTENT, rest) + relayed.last_words(SAID)
    assert got == CONTENT + NO
    assert relayed.end() + relayed.last_words(SAID) == NO


def test_the_first_content_is_timed_once() -> None:
    relayed = passing()
    assert relayed.feed(COMMENT + ROLE + CONTENT[:-1]) == (COMMENT + ROLE, False)
    assert relayed.first_content is None
    assert relayed.feed(b"\n") == (CONTENT, True)
    assert relayed.feed(COMMENT + FINISH + DONE) == (COMMENT + FINISH + DONE, False)
    assert relayed.feed(CONTENT)[1]
    assert relayed.first_content == 0.0


@pytest.mark.parametrize(("hides", "shown"), [(True, b""), (False, USAGE)])
def test_the_usage_that_a_client_did_not_ask_for_is_hidden(*, hides: bool, shown: bytes) -> None:
    relayed = passing(hides_usage=hides)
    assert feed(relayed, CONTENT + FINISH, USAGE, DONE) == CONTENT + FINISH + shown + DONE
    assert (relayed.usage, relayed.lost, relayed.tokens) == (Usage(3, 4), None, 4)


def test_hidden_usage_at_the_end_leaves_no_trace_without_its_empty_line_either() -> None:
    relayed = passing(hides_usage=True)
    assert feed(relayed, CONTENT + FINISH, USAGE[:-1]) == CONTENT + FINISH
    assert (relayed.end(), relayed.usage) == (DONE, Usage(3, 4))


@pytest.mark.parametrize(
    "event",
    [
        chunk(content="a", usage=spent(3, 1)),
        chunk(finish="stop", usage=spent(3, 1)),
        sse({"choices": [], "usage": None}),
        sse({"choices": [], "prompt_filter_results": []}),
    ],
)
def test_what_is_more_than_usage_is_not_hidden(event: bytes) -> None:
    assert feed(passing(hides_usage=True), event) == event


@pytest.mark.parametrize(
    ("told", "usage"), [(b'{"prompt_tokens":3,"completion_tokens":4}', Usage(3, 4)), (b'"3"', None), (b"[]", None)]
)
def test_usage_with_null_for_choices_is_hidden(told: bytes, usage: Usage | None) -> None:
    relayed = passing(hides_usage=True)
    feed(relayed, CONTENT + FINISH)
    assert feed(relayed, b'data: {"choices":null,"usage":' + told + b"}\n\n") == b""
    assert (relayed.usage, relayed.opaque) == (usage, False)


def test_tokens_are_counted_where_nobody_tells() -> None:
    relayed = passing()
    feed(relayed, ROLE + CONTENT * 2 + chunk(tool_calls=[arguments("{}")]) + COMMENT)
    assert (relayed.tokens, relayed.usage, relayed.lost) == (3, None, None)
    feed(relayed, USAGE + FINISH)
    assert relayed.tokens == 4


@pytest.mark.parametrize(
    "event",
    [
        sse({"choices": [{"index": 1, "delta": {"content": "a"}}]}),
        chunk(content=[{"type": "thinking"}]),
        chunk(audio={"data": "AA"}),
        chunk(images=[{"type": "image_url"}]),
        sse({"choices": [{"delta": "a"}]}),
        sse(1),
    ],
)
def test_what_cannot_be_said_again_makes_a_stream_opaque(event: bytes) -> None:
    relayed = passing()
    assert feed(relayed, CONTENT + event + CONTENT) == CONTENT + event + CONTENT
    assert relayed.opaque
    assert passing(keeps=False).opaque


def test_what_is_not_kept_still_passes() -> None:
    relayed = passing(keeps=False)
    assert feed(relayed, WHOLE) == WHOLE
    assert (relayed.said, relayed.tokens, relayed.complete) == ((), 1, True)


def test_a_long_event_is_content_and_passes_in_parts() -> None:
    relayed = passing()
    begun = b"data: " + b"x" * (MIB - 6)
    assert relayed.feed(CONTENT + begun) == (CONTENT, True)
    assert not relayed.opaque
    assert relayed.feed(b"y") == (begun + b"y", True)
    assert (relayed.opaque, relayed.last_words(SAID), relayed.truncated) == (True, b"\n\n" + NO, True)
    assert relayed.feed(b"z" * 2 * MIB) == (b"z" * 2 * MIB, True)
    assert relayed.feed(b"\n\n" + FINISH + DONE) == (b"\n\n" + FINISH + DONE, True)
    assert (relayed.complete, relayed.malformed, relayed.last_words(SAID)) == (True, 0, NO)


@pytest.mark.parametrize(
    ("end", "place"),
    [*[(end, place) for end in (b"\n\n", b"\r\r") for place in (0, 1)], *[(b"\r\n\r\n", place) for place in (0, 1, 2)]],
)
@pytest.mark.parametrize("rest", [FINISH, DONE, FAILED])
def test_what_follows_a_long_event_is_read(end: bytes, place: int, rest: bytes) -> None:
    """A cut inside the empty line used to hide the event that follows."""
    relayed = passing()
    begun = b"data: " + b"x" * MIB
    passed = feed(relayed, begun + end[:place], end[place:] + rest)
    assert passed == begun + end + (b"" if rest == FAILED else rest)
    assert (relayed.truncated, relayed.failed) == (False, rest == FAILED)


def test_many_short_comments_are_no_content() -> None:
    relayed = passing()
    pings = [b": ping\n\n" + b"x" * 60_000 + b"\n\n"] * 40
    assert not any(relayed.feed(ping)[1] for ping in pings)
    assert not relayed.opaque


CALL = {"index": 0, "id": "call-first", "type": "function", "function": {"name": "look", "arguments": ""}}
SECOND_CALL = {**CALL, "index": 1, "id": "call-second"}


def arguments(text: str, index: int = 0) -> dict[str, object]:
    return {"index": index, "function": {"arguments": text}}


def told(name: str, *deltas: dict[str, object], prompt: int = 9) -> bytes:
    """Write a whole stream that says this, of a server that tells its usage at the end."""
    opening: dict[str, object] = {"role": "assistant", "content": ""}
    parts = [written(name, delta) for delta in (opening, *deltas)]
    return b"".join([*parts, written(name, {}, "stop"), usage_of(prompt, len(deltas), name), DONE])


def in_pieces(draw: st.DrawFn, text: str, field: str = "content") -> list[dict[str, object]]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [{field: text[start:end]} for start, end in itertools.pairwise([0, *cuts, len(text)]) if end > start]


@st.composite
def spoken(draw: st.DrawFn, text: str, *, rich: bool) -> list[dict[str, object]]:
    """Draw the deltas that say a text, and what goes before and after it where the answer is rich."""
    deltas = in_pieces(draw, text)
    if not rich:
        return deltas
    field = draw(st.sampled_from(["reasoning", "reasoning_content"]))
    calls: list[dict[str, object]] = [
        {"tool_calls": [call]}
        for call, index in ((CALL, 0), (SECOND_CALL, 1))
        for call in [call, *[arguments(str(part["a"]), index) for part in in_pieces(draw, '{"a":"b"}', "a")]]
    ]
    return [*in_pieces(draw, "hm, hm", field), *deltas, *calls]


def check_one_stream(stream: bytes, answered: Runs) -> None:
    """See that a client takes it for one whole stream that says this."""
    assert answer(stream) == answered
    found = events(stream if stream.endswith(b"\n\n") else stream + b"\n\n")
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    assert "[DONE]" not in chunks
    assert len({(event["id"], event["created"]) for event in chunks}) == 1
    choices = [choice for event in chunks for choice in event["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert sum("role" in choice["delta"] for choice in choices) <= 1
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert [call["id"] for call in calls if "id" in call] == (["call-first", "call-second"] if calls else [])


@pytest.mark.exhaustive
@given(st.data())
def test_replays_make_one_stream_wherever_the_others_break(data: st.DataObject) -> None:
    draw = data.draw
    relayed = passing()
    got = b""
    answered: Runs = ()
    for name in ("first", "second", "third", "fourth"):
        stream = told(name, *draw(spoken(TEXT, rich=True)))
        answered = answered or answer(stream)
        end = len(stream) if name == "fourth" else draw(st.integers(len(ROLE) if name == "first" else 0, len(stream)))
        if name != "first":
            relayed.taken_over("replay")
        for part in draw(cut(stream[:end])):
            got += relayed.feed(part)[0]
        got += relayed.end() if draw(st.booleans()) or relayed.complete else b""
        if relayed.complete:
            break
    assert not relayed.truncated
    check_one_stream(got, answered)
    assert (relayed.size, relayed.malformed, relayed.failed) == (len(got), 0, False)
    assert relayed.said == answered


@pytest.mark.exhaustive
@given(st.data())
def test_any_rescues_make_one_stream_wherever_the_others_break(data: st.DataObject) -> None:
    draw = data.draw
    relayed = passing(hides_usage=draw(st.booleans()))
    got = b""
    for name in ("first", "second", "third", "fourth"):
        how: Rescue = draw(st.sampled_from(["continue", "replay"]))
        known = "".join(piece.text for piece in relayed.said)
        heeds = how == "continue" and (len(known) < 16 or draw(st.booleans()))
        stream = told(name, *draw(spoken(TEXT[len(known) :] if heeds else TEXT, rich=False)))
        end = len(stream) if name == "fourth" else draw(st.integers(len(ROLE) if name == "first" else 0, len(stream)))
        if name != "first":
            relayed.taken_over(how if known else "replay")
        for part in draw(cut(stream[:end])):
            got += relayed.feed(part)[0]
        got += relayed.end() if draw(st.booleans()) or relayed.complete else b""
        if relayed.complete:
            break
    assert not relayed.truncated
    check_one_stream(got, (Piece("content", TEXT),))
    lost = relayed.lost
    assert lost is None or (lost.completion_tokens or 0) >= 0


def broken(*texts: str, hides_usage: bool = False) -> CompletionStream:
    """Give a relayed whose first stream said these, a token each, and broke."""
    relayed = passing(hides_usage=hides_usage)
    feed(relayed, ROLE, *[chunk(content=text) for text in texts], b"data: {cut")
    return relayed


def taken(how: Rescue, *texts: str) -> CompletionStream:
    relayed = broken(*texts)
    relayed.taken_over(how)
    return relayed


def test_a_takeover_begins_anew_and_keeps_what_is_the_clients() -> None:
    relayed = broken("once upon ", "a time ")
    feed(relayed, b"}\n\n" + FAILED)
    size = relayed.size
    assert (relayed.failed, relayed.malformed, relayed.tokens) == (True, 1, 2)
    relayed.taken_over("replay")
    assert (relayed.failed, relayed.complete, relayed.truncated, relayed.first_content) == (False, False, True, 0.0)
    assert (relayed.said, relayed.tokens, relayed.size) == ((Piece("content", "once upon a time "),), 2, size)
    passed, says = relayed.feed(second(role="assistant", content="once upon a time there"))
    [event] = events(passed)
    assert event == {
        "id": "first",
        "created": 5,
        "model": "second",
        "choices": [{"index": 0, "delta": {"content": "there"}, "finish_reason": None}],
    }
    assert (says, relayed.size, relayed.said[0].text) == (True, size + len(passed), "once upon a time there")


def test_the_id_is_that_of_the_clients_text() -> None:
    """Azure opens with a chunk of its filter's results that has neither."""
    relayed = passing()
    feed(relayed, sse({"id": "", "created": 0, "choices": [], "prompt_filter_results": []}), ROLE, chunk(content=TEXT))
    relayed.taken_over("replay")
    [event] = events(feed(relayed, second(content=TEXT + "empty")))
    assert (event["id"], event["created"]) == ("first", 5)


@pytest.mark.parametrize("more", [(), (USAGE,), (written("other", {"content": ""}),)])
def test_the_id_is_that_of_the_first_event_where_that_is_text(more: tuple[bytes, ...]) -> None:
    relayed = passing()
    feed(relayed, chunk(content=TEXT), *more)
    relayed.taken_over("replay")
    [event] = events(feed(relayed, second(content=TEXT + "empty")))
    assert (event["id"], event["created"]) == ("first", 5)


@pytest.mark.parametrize("how", ["replay", "continue"])
def test_what_repeats_the_clients_text_is_withheld(how: Rescue) -> None:
    relayed = taken(how, TEXT)
    assert relayed.feed(COMMENT + second(role="assistant", content="")) == (COMMENT, False)
    assert relayed.feed(second(content=TEXT[:9])) == (b"", True)
    assert relayed.feed(COMMENT + second(content=TEXT[9:-1], usage=spent(9, 2))) == (COMMENT, True)
    assert content(feed(relayed, second(content=TEXT[-1] + "empty"))) == "empty"
    assert events(feed(relayed, second(content=""), second(finish="stop"), DONE))[-1] == "[DONE]"
    assert (relayed.complete, relayed.lost) == (True, Usage(9, 2))


EARLY = second(role="assistant", content="", finish="stop")


@pytest.mark.parametrize("how", ["replay", "continue"])
def test_a_finish_reason_before_all_text_ends_nothing(how: Rescue) -> None:
    """A replay was broken off by it, and a text that a box said again, though it was to go on, was said twice."""
    relayed = taken(how, TEXT)
    assert feed(relayed, EARLY, second(content=TEXT[:9], finish="stop")) == b""
    assert content(feed(relayed, second(content=TEXT[9:] + "empty", finish="stop"), DONE)) == "empty"
    assert relayed.said[0].text == TEXT + "empty"


@pytest.mark.parametrize("told", [b"", usage_of(9, 2, "second")])
def test_a_continuation_may_have_nothing_to_add(told: bytes) -> None:
    relayed = taken("continue", TEXT)
    *passed, done = events(feed(relayed, EARLY, told, DONE))
    assert (passed[0]["choices"][0]["finish_reason"], len(passed), done) == ("stop", 1 + bool(told), "[DONE]")


def test_usage_does_not_overtake_what_is_withheld() -> None:
    """Who took it for the last event lost text."""
    relayed = taken("continue", TEXT)
    text, usage, done = events(feed(relayed, second(content="once ", finish="stop"), usage_of(9, 2, "second"), DONE))
    assert (text["choices"][0]["delta"]["content"], usage["choices"], done) == ("once ", [], "[DONE]")
    relayed = taken("continue", TEXT)
    [text] = events(feed(relayed, second(content=TEXT[:-1]), usage_of(9, 2, "second"), second(content=TEXT[-1:])))
    assert text["choices"] == []


@pytest.mark.parametrize("end", [second(finish="stop"), second(finish="stop", content=""), DONE])
def test_what_was_withheld_of_a_continuation_comes_before_its_end(end: bytes) -> None:
    relayed = taken("continue", TEXT)
    assert relayed.feed(second(content="once ") + second(content="upon")) == (b"", True)
    passed = feed(relayed, end)
    assert content(passed) == "once upon"
    assert (relayed.complete, content(feed(relayed, usage_of(9, 2, "second"))), relayed.said[0].text) == (
        True,
        "",
        TEXT + "once upon",
    )


def test_what_was_withheld_comes_with_the_last_text() -> None:
    relayed = taken("continue", TEXT)
    assert content(feed(relayed, second(content="once "), second(finish="stop", content="upon"), DONE)) == "once upon"
    relayed = taken("continue", TEXT)
    assert feed(relayed, second(content="once "), second(finish="stop", content="upon")) == b""
    assert content(relayed.end()) == "once upon"
    relayed = taken("continue", TEXT)
    assert content(feed(relayed, second(content="once "), second(content="more"))) == "once more"
    relayed = taken("continue", TEXT)
    feed(relayed, second(content="once "), DONE[:-2])
    assert content(relayed.end() + b"\n\n") == "once "


@pytest.mark.parametrize(
    ("how", "stream"),
    [
        ("replay", second(finish="stop") + DONE),
        ("replay", second(role="assistant", finish="stop") + second(content="Once")),
        ("replay", second(content=TEXT[:9]) + second(finish="stop")),
        ("replay", second(content=TEXT[:-1], finish="stop") + DONE),
        ("replay", second(content=TEXT[:-1]) + DONE),
        ("replay", DONE),
        ("replay", second(content="Once")),
        ("replay", second(content=TEXT[:9]) + second(content="x")),
        ("replay", second(reasoning="hm")),
        ("replay", second(tool_calls=[CALL])),
        ("replay", second(content=[{"type": "thinking"}])),
        ("replay", second(audio={"data": "AA"})),
        ("replay", second(images=[{"type": "image_url"}])),
        ("continue", second(content=[{"type": "thinking"}])),
        ("continue", sse({"choices": [{"index": 1, "delta": {"content": "a"}}]})),
        *[
            (how, more)
            for how in ("replay", "continue")
            for more in (
                b"data: " + b"x" * (MIB + 1),
                sse({"choices": [{"index": 0, "delta": [TEXT]}]}),
                b'data: {"choices":[{"delta":{"content":"%b."}}],"x":"\xff"}\n\n' % TEXT.encode(),
                b'data: {"choices":[{"delta":{"content":"%b."}}],"x":1e999}\n\n' % TEXT.encode(),
            )
        ],
    ],
)
def test_what_cannot_be_joined_ends_the_rescue(how: Rescue, stream: bytes) -> None:
    relayed = taken(how, TEXT)
    with pytest.raises(DiffersError):
        feed(relayed, stream)


@pytest.mark.parametrize("how", ["replay", "continue"])
@pytest.mark.parametrize("end", [DONE, b""])
def test_who_takes_over_may_send_a_finish_reason_in_each_event(how: Rescue, end: bytes) -> None:
    """One that began again was taken for one that goes on, or for one that ends."""
    relayed = taken(how, TEXT)
    words = [second("stop", content=word) for word in (TEXT[:10], TEXT[10:], "and ", "so on")]
    got = feed(relayed, *words, end) + relayed.end()
    assert (content(got), got.endswith(DONE), relayed.complete) == ("and so on", True, True)


@pytest.mark.parametrize("learns", [True, False])
def test_a_choice_of_several_that_goes_on_is_seen_to(*, learns: bool) -> None:
    relayed = CompletionStream(lambda: 0.0, choices=2, learns=learns)
    feed(relayed, CONTENT, CONTENT, FINISH, CONTENT, sse({"choices": [{"index": 1, "finish_reason": "stop"}]}))
    assert (relayed.complete, relayed.truncated) == (False, True)


@pytest.mark.parametrize("error", ["", {}, False, 0, []])
def test_an_error_that_says_nothing_is_none(error: object) -> None:
    relayed = passing()
    choice = {"delta": {"content": "hi"}, "error": error}
    stream = sse({"choices": [choice]}) + sse({"choices": [choice | {"delta": {}, "finish_reason": "stop"}]}) + DONE
    assert feed(relayed, stream) == stream
    assert (relayed.failed, relayed.complete) == (False, True)


@pytest.mark.parametrize("rest", [second(finish="stop"), DONE])
def test_a_replay_that_ends_early_is_told_at_the_end_too(rest: bytes) -> None:
    relayed = taken("replay", TEXT)
    assert feed(relayed, second(content=TEXT[:-1]), rest[:-2]) == b""
    with pytest.raises(DiffersError):
        relayed.end()


@pytest.mark.parametrize("how", ["replay", "continue"])
@pytest.mark.parametrize("cut_off", [b"\n", b"\n\n"])
def test_a_second_stream_is_set_apart_from_an_event_without_its_end(cut_off: bytes, how: Rescue) -> None:
    """The second stream's first event used to be glued to it, as it came."""
    relayed = passing()
    got = feed(relayed, chunk(content=TEXT).removesuffix(cut_off)) + relayed.end()
    relayed.taken_over(how)
    got += feed(relayed, COMMENT, second(content=TEXT), second(content="empty"), second(finish="stop"), DONE)
    check_one_stream(got, (Piece("content", TEXT + "empty"),))


def test_a_second_stream_may_fail_too() -> None:
    relayed = taken("replay", TEXT)
    assert feed(relayed, second(content=TEXT[:9]) + FAILED + DONE) == b""
    assert (relayed.failed, relayed.end()) == (True, b"")
    relayed.taken_over("continue")
    assert content(feed(relayed, second(content="empty"))) == "empty"


def test_events_of_a_second_stream_that_say_nothing_of_the_answer_pass() -> None:
    relayed = taken("replay", TEXT)
    told = sse({"id": "second", "choices": [], "prompt_filter_results": []})
    assert feed(relayed, COMMENT + b"retry: 3\n\n") == COMMENT + b"retry: 3\n\n"
    assert events(feed(relayed, told)) == [{"id": "first", "choices": [], "prompt_filter_results": []}]
    assert feed(relayed, b"data: {\n\n") == b""
    assert relayed.malformed == 1


@pytest.mark.parametrize("shown", [True, False])
def test_a_continuation_is_counted_as_one_stream(*, shown: bool) -> None:
    relayed = broken("once upon a ", "time ", "there ", hides_usage=not shown)
    relayed.taken_over("continue")
    passed = feed(relayed, second(content="was "), second(content="a "), second(finish="stop"))
    passed += feed(relayed, usage_of(12, 2, "second"), DONE)
    assert [event["usage"] for event in events(passed)[:-1] if not event["choices"]] == [spent(9, 5)] * shown
    assert (relayed.usage, relayed.lost, relayed.tokens) == (Usage(9, 5), Usage(12, 0), 5)


@pytest.mark.parametrize("how", ["replay", "continue"])
def test_a_replay_is_counted_as_one_stream(how: Rescue) -> None:
    relayed = taken(how, "once upon a ", "time ", "there ")
    passed = feed(relayed, *[second(content=text) for text in ("once upon a time ", "there ", "was ")])
    passed += feed(relayed, second(finish="stop"), usage_of(9, 3, "second"), DONE)
    assert events(passed)[-2]["usage"] == spent(9, 3)
    assert (relayed.usage, relayed.lost) == (Usage(9, 3), Usage(9, 2))


def test_usage_in_each_chunk_goes_on() -> None:
    relayed = passing()
    feed(relayed, *[chunk(content="two words ", usage=spent(9, 2 * count)) for count in (1, 2)])
    assert relayed.tokens == 4
    relayed.taken_over("continue")
    assert (relayed.usage, relayed.tokens) == (None, 4)
    passed = feed(relayed, second(content="a ", usage=spent(13, 1)), second(content="b ", usage=spent(13, 2)))
    passed += feed(relayed, second(finish="stop", usage=spent(13, 3)))
    assert [event["usage"] for event in events(passed)] == [spent(9, 5), spent(9, 6), spent(9, 7)]
    assert (relayed.usage, relayed.lost) == (Usage(9, 7), Usage(13, 0))


def test_usage_of_a_continuation_that_was_withheld_is_counted_so() -> None:
    relayed = taken("continue", TEXT)
    passed = feed(relayed, second(content="once ", usage=spent(10, 1)), second(content="more", usage=spent(10, 2)))
    assert [event["usage"] for event in events(passed)] == [spent(9, 2), spent(9, 3)]


def test_a_stream_that_took_over_may_be_taken_over() -> None:
    relayed = taken("continue", "once upon a ", "time ")
    feed(relayed, second(content="there "))
    assert relayed.tokens == 3
    relayed.taken_over("continue")
    assert relayed.said == (Piece("content", "once upon a time there "),)
    passed = feed(relayed, second(content="was "), second(finish="stop"), usage_of(12, 1, "third"))
    assert events(passed)[-1]["usage"] == spent(9, 4)
    assert {event["id"] for event in events(passed)} == {"first"}
    assert relayed.usage == Usage(9, 4)
    assert relayed.lost is not None
    assert relayed.lost.completion_tokens == 0


def test_what_is_lost_is_the_sum_of_what_was_read_again() -> None:
    relayed = taken("replay", "once upon a ", "time ")
    feed(relayed, second(content="once upon "))
    relayed.taken_over("replay")
    feed(relayed, second(content="once upon a "), second(content="time "), second(content="x"), usage_of(9, 3))
    assert (relayed.usage, relayed.lost) == (Usage(9, 3), Usage(18, 3))


def test_what_a_second_continuation_was_given_is_lost_too() -> None:
    """The text that the second of three streams had in its prompt used to be left out."""
    relayed = taken("continue", "once upon ", "a time ")
    feed(relayed, second(content="there "))
    relayed.taken_over("continue")
    feed(relayed, second(content="was"), second(finish="stop"), usage_of(9 + 3, 1))
    assert (relayed.usage, relayed.lost) == (Usage(9, 4), Usage(9 + 2 + 3 + 9, 0))


@pytest.mark.parametrize("how", ["continue", "replay"])
def test_what_says_nothing_passes_once_the_text_is_new(how: Rescue) -> None:
    """Fields that are not known used to be dropped with the event, when they came without text."""
    relayed = taken(how, TEXT)
    assert feed(relayed, second(role="assistant", content="")) == b""
    feed(relayed, second(content=TEXT if how == "replay" else "in it "))
    noted = feed(relayed, second(annotations=[{"url": "x"}]))
    assert [event["choices"][0]["delta"] for event in events(noted)] == [{"annotations": [{"url": "x"}]}]
    assert {event["id"] for event in events(noted)} == {"first"}


@pytest.mark.parametrize("rescued", [False, True])
def test_a_text_without_end_is_not_kept(*, rescued: bool) -> None:
    """All of it used to be, so that a box that never stops filled the memory."""
    relayed = taken("continue", "x") if rescued else CompletionStream(int)
    for _ in range(16):
        feed(relayed, second(content="x" * (MIB // 16)) if rescued else chunk(content="y" * (MIB // 16)))
    if not rescued:
        assert not relayed.opaque
        feed(relayed, CONTENT)
    assert (relayed.opaque, relayed.said) == (True, ())


def test_a_text_of_many_parts_without_end_is_not_kept() -> None:
    relayed = CompletionStream(int)
    for _ in range(9):
        feed(relayed, chunk(content="y" * (MIB // 16)), chunk(reasoning="z" * (MIB // 16)))
    assert (relayed.opaque, relayed.said) == (True, ())


def test_without_usage_only_tokens_are_lost() -> None:
    relayed = taken("replay", TEXT)
    feed(relayed, second(content=TEXT), second(content="x"), second(finish="stop"), DONE)
    assert (relayed.usage, relayed.lost, relayed.tokens) == (None, Usage(None, 1), 2)


def calls_in(stream: bytes) -> list[dict[str, Any]]:
    return [
        call
        for event in events(stream)
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]


@pytest.mark.parametrize("names", [["lo"], ["lo", "ok"], ["look"]])
def test_a_tool_call_keeps_its_first_id(names: list[str]) -> None:
    """Clients join the parts of a name, and of an id too."""
    relayed = passing()
    opening = {**CALL, "function": {"name": names[0], "arguments": ""}}
    more = [{"index": 0, "function": {"name": name}} for name in names[1:]]
    got = feed(relayed, ROLE, *[chunk(tool_calls=[call]) for call in (opening, *more)])
    assert not relayed.opaque
    relayed.taken_over("replay")
    got += feed(relayed, second(tool_calls=[{**CALL, "id": "call-other"}]), second(tool_calls=[arguments("{}")]))
    calls = calls_in(got)
    assert [call["id"] for call in calls if "id" in call] == ["call-first"]
    assert "".join(call["function"].get("name", "") for call in calls) == "look"
    assert "".join(call["function"].get("arguments", "") for call in calls) == "{}"


def test_reasoning_of_another_form_is_not_lost_with_the_text_beside_it() -> None:
    """The text in the same event used to be lost: an empty reasoning took its place."""
    relayed = taken("replay", TEXT)
    sealed = second(content=TEXT + "empty", reasoning="", reasoning_details=[{"type": "reasoning.encrypted"}])
    with pytest.raises(DiffersError):
        feed(relayed, sealed)


def of(index: object, finish: str | None = None) -> bytes:
    delta = {} if finish else {"content": "a"}
    return sse({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("choices", "stream", "finished"),
    [
        (1, [of(0), of(0, "stop")], True),
        (1, [of(1), of(1, "stop")], True),
        (1, [of(0), of(1), of(0, "stop")], False),
        (1, [of(1), of(0), of(1, "stop")], False),
        (1, [of(1), of(0), of(1, "stop"), of(0, "stop")], True),
        (2, [of(0), of(0, "stop")], False),
        (2, [of(0), of(0, "stop"), of(0, "stop")], False),
        (2, [of(0), of(0, "stop"), of(1), of(1, "length")], True),
        (2, [of([0]), of([0], "stop"), of([1], "stop")], True),
        (0, [of(0), of(0, "stop"), of(1), of(1, "stop")], False),
        (0, [of(0), of(0, "stop"), DONE], True),
    ],
)
def test_a_stream_is_whole_when_all_its_choices_are(choices: int, stream: list[bytes], *, finished: bool) -> None:
    relayed = CompletionStream(lambda: 0.0, choices=choices)
    feed(relayed, *stream)
    assert (relayed.complete, relayed.truncated) == (finished, not finished)
    assert relayed.opaque == (choices != 1 or of(1) in stream)


def test_white_space_that_follows_new_text_is_new() -> None:
    relayed = taken("continue", TEXT + "  ")
    assert content(feed(relayed, second(content="and"), second(content=" so on"))) == "and so on"


def test_much_white_space_that_is_said_again_is_left_out_soon() -> None:
    """It took as long as the square of its length: a minute for a MiB, and nobody was served meanwhile."""
    space = " " * (MIB - 1000)
    relayed = taken("continue", TEXT + space)
    assert content(feed(relayed, second(content=space[1:]), second(content="  and so on"))) == "and so on"


def test_many_choices_are_counted_soon() -> None:
    """It took as long as the square of their number: half a minute for a MiB, and nobody was served meanwhile."""
    relayed = CompletionStream(lambda: 0.0, choices=80_000)
    begun = sse({"choices": [{"index": index} for index in range(80_000)]})
    ended = sse({"choices": [{"index": index, "finish_reason": "stop"} for index in range(80_000)]})
    assert (*relayed.feed(begun), relayed.whole) == (begun, False, False)
    assert (feed(relayed, ended), relayed.whole) == (ended, True)


@pytest.mark.parametrize("index", [[0], {"a": [1]}, "0"])
def test_a_choice_may_be_known_by_anything(index: object) -> None:
    relayed = CompletionStream(lambda: 0.0)
    feed(relayed, sse({"choices": [{"index": index, "delta": {"content": "a"}}]}))
    feed(relayed, sse({"choices": [{"index": 0, "finish_reason": "stop"}]}))
    assert not relayed.whole
    feed(relayed, sse({"choices": [{"index": index, "finish_reason": "stop"}]}))
    assert relayed.whole


def test_a_finish_reason_beside_repeated_text_is_told() -> None:
    relayed = taken("replay", TEXT)
    [event] = events(feed(relayed, second(content=TEXT, finish="stop")))
    assert event["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    assert relayed.complete
