"""Heads that say what the last one said: aiohttp's parser is asked whether they do."""

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpResponseParser
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.execution.heads import LastHead

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer a\r\nContent-Length: 12\r\n\r\n"
ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 29 Nov 2026 10:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 12\r\n"
    b"content-type: application/json\r\n\r\n"
)
BODY = b'{"a":"bcde"}'

Fields = list[tuple[str, str]]


@pytest.fixture(scope="module")
def protocol() -> Iterator[BaseProtocol]:
    loop = asyncio.new_event_loop()
    yield BaseProtocol(loop)
    loop.close()


def read(protocol: BaseProtocol, data: bytes) -> tuple[bytes, Fields] | None:
    """Let aiohttp read one message: give its start line and its fields, None if it is none."""
    kind = HttpResponseParser if data.startswith(b"HTTP") else HttpRequestParser
    try:
        messages, _, _ = kind(protocol, protocol._loop, 1 << 20).feed_data(data)
    except HttpProcessingError:
        return None
    if len(messages) != 1:
        return None
    return data.split(b"\r\n")[0], [(name.lower(), value) for name, value in messages[0][0].headers.items()]


def without_what_differs(start: bytes, fields: Fields) -> Fields:
    free = {"content-length", "x-request-id", *(("date", "etag") if start.startswith(b"HTTP") else ())}
    return [field for field in fields if field[0] not in free]


def known(head: bytes, length: int = 12) -> LastHead[str]:
    last: LastHead[str] = LastHead(of_answer=head.startswith(b"HTTP"))
    last.learn(head + BODY, length, "known")
    return last


@pytest.mark.parametrize("head", [REQUEST, ANSWER])
def test_another_length_is_the_same_head(head: bytes) -> None:
    last = known(head)
    assert last.meaning == "known"
    assert last.repeated(head + BODY) == (len(head), 12)
    longer = head.replace(b": 12", b": 1234")
    assert last.repeated(longer) == (len(longer), 1234)


def test_empty_lines_are_no_head() -> None:
    last: LastHead[str] = LastHead(of_answer=True)
    last.learn(b"\r\n\r\n" + ANSWER.replace(b"content-length: 12", b"transfer-encoding: chunked"), None, "chunked")
    assert last.repeated(b"\r\n\r\n" + ANSWER) is None


@pytest.mark.parametrize("name", [b"Date", b"etag", b"X-Request-Id"])
def test_what_is_of_no_interest_in_an_answer_may_differ(name: bytes) -> None:
    answer = ANSWER.replace(b"server: uvicorn", b"%b: one" % name)
    other = answer.replace(b"one", b'W/"12-ab"')
    assert known(answer).repeated(other) == (len(other), 12)


@pytest.mark.parametrize("name", [b"Date", b"etag"])
def test_any_field_of_a_request_may_matter(name: bytes) -> None:
    request = REQUEST.replace(b"\r\n\r\n", b"\r\n%b: one\r\n\r\n" % name)
    assert known(request).repeated(request.replace(b"one", b"two")) is None


@pytest.mark.parametrize("place", [b"Host", b"Authorization", b"Content-Length"])
def test_each_request_may_have_its_own_id(place: bytes) -> None:
    request = REQUEST.replace(place, b"X-Request-Id: one\r\n%b" % place)
    other = request.replace(b"one", b"another").replace(b": 12", b": 123")
    last = known(request)
    for each, length, found in ((other, 123, b"another"), (request, 12, b"one")):
        assert last.repeated(each) == (len(each), length)
        assert last.request_id == found


@pytest.mark.parametrize("long", [b"one", b"1" * 100])
def test_a_request_with_two_ids_is_not_kept(long: bytes) -> None:
    """Which of them counts is the parser's to say."""
    request = REQUEST.replace(b"Host", b"X-Request-Id: one\r\nx-request-id: %b\r\nHost" % long)
    assert known(request).meaning is None


def test_an_id_that_is_too_long_to_be_expected_is_a_part_of_the_meaning() -> None:
    request = REQUEST.replace(b"Host", b"x-request-id: %b\r\nHost" % (b"1" * 100))
    last = known(request)
    assert (last.repeated(request), last.request_id) == ((len(request), 12), None)
    assert last.repeated(request.replace(b"11", b"12")) is None


CHANGES = [
    (b": 12", b": 1a"),
    (b": 12", b": -1"),
    (b": 12", b": "),
    (b": 12", b": 12 "),
    (b": 12", b": 0x12"),
    (b": 12", b": 1234567890"),
    (b": 12", b": 1\n2"),
    (b": 12", b": 12\r\nContent-Length: 12"),
    (b": 12\r\n", b": 12\r\nTransfer-Encoding: chunked\r\n"),
    (b": 12\r\n", b": 12\n"),
    (b"Sun, 29", b"Sun,\n29"),
    (b"Sun, 29", b"Sun\x0029"),
    (b"GMT", b"GMT" * 30),
    (b"Bearer a", b"Bearer b"),
    (b"200 OK", b"500 OK"),
    (b"\r\n\r\n", b"\r\n"),
    (b"HTTP", b"H"),
]


@pytest.mark.parametrize(
    ("head", "old", "new"),
    [(head, old, new) for head in (REQUEST, ANSWER) for old, new in CHANGES if old in head],
)
def test_anything_else_is_another_head(head: bytes, old: bytes, new: bytes) -> None:
    assert known(head).repeated(head.replace(old, new)) is None


@pytest.mark.parametrize("head", [REQUEST, ANSWER])
def test_a_head_that_is_not_all_there_is_none(head: bytes) -> None:
    last = known(head)
    assert [last.repeated(head[:end]) for end in range(len(head))] == [None] * len(head)


@pytest.mark.parametrize(
    "head",
    [
        REQUEST.replace(b"Content-Length: 12\r\n", b""),
        REQUEST.replace(b": 12", b": 12 "),
        REQUEST.replace(b": 12", b": 13"),
        REQUEST.replace(b": 12", b": 12\r\nContent-Length: 12"),
        REQUEST.replace(b": 12", b": 12a"),
    ],
)
def test_a_head_whose_length_is_not_plain_is_not_kept(head: bytes) -> None:
    last = known(head)
    assert (last.meaning, last.repeated(head)) == (None, None)


@pytest.mark.parametrize("odd", [REQUEST[:-2], REQUEST.replace(b"\r\nHost", b"\nHost"), REQUEST[:-2] + b"\n"])
def test_a_head_that_is_not_seen_whole_is_not_kept(odd: bytes) -> None:
    last: LastHead[str] = LastHead(of_answer=False)
    last.learn(odd + BODY, 12, "odd")
    assert (last.meaning, last.repeated(odd)) == (None, None)


@pytest.mark.parametrize("date", [b"Sun, 29 Nov 2026 10:00:00 GMT", b""])
def test_a_head_may_tell_no_length(date: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n%btransfer-encoding: chunked\r\n\r\n" % (b"date: %b\r\n" % date if date else b"")
    last: LastHead[str] = LastHead(of_answer=True)
    last.learn(head, None, "chunked")
    assert last.repeated(head + b"0\r\n\r\n") == (len(head), 0)
    assert last.repeated(head.replace(b"Sun, 29", b"Mon, 30")) == (len(head), 0)
    assert last.repeated(head.replace(b"chunked", b"gzip")) is None
    last.learn(REQUEST, None, "whole")
    assert last.meaning == "chunked"


def test_who_never_says_the_same_is_not_listened_to_for_ever() -> None:
    last: LastHead[int] = LastHead(of_answer=False)
    for number in range(20):
        last.learn(REQUEST.replace(b"Bearer a", b"Bearer %d" % number), 12, number)
    assert last.meaning == 7
    assert last.repeated(REQUEST.replace(b"Bearer a", b"Bearer 7")) is not None
    last.learn(REQUEST, 12, 8)
    assert last.meaning == 8


_names = st.sampled_from(
    [
        b"X-A",
        b"content-type",
        b"Accept",
        b"date",
        b"Date",
        b"ETag",
        b"x-request-id",
        b"content-length-x",
        b"x-content-length",
    ]
)
_values = st.sampled_from([b"1", b"12", b"a b", b"Sun, 29 Nov 2026", b"", b"content-length: 5", b"\xe9"])
_others = _values | st.sampled_from([b"a\0b", b"a\nb", b"a\rb"])
_lengths = st.sampled_from(
    [b"12", b"0", b"7", b"1234", b"999999999", b"1234567890", b"007", b"-1", b"1 2", b"", b"1\r\nX-A: 1"]
)
_starts = st.sampled_from([b"POST /v1/chat/completions HTTP/1.1", b"HTTP/1.1 200 OK", b"HTTP/1.1 201 Created"])
_small = [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"0", b"9", b"12", b"-1", b"+3", b"a", b"\0", b"\xff", b", 12"]
_large = [b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length: 3", b"\r\n\r\n", b"GMT"]
_splices = st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from(_small + _large))


@st.composite
def two_heads(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a head, and one that differs from it in its length, in a value, or anywhere."""
    fields = draw(st.lists(st.tuples(_names, _values), min_size=1, max_size=4))
    fields.insert(
        draw(st.integers(0, len(fields))), (draw(st.sampled_from([b"Content-Length", b"content-length"])), b"12")
    )
    place, start = draw(st.integers(0, len(fields) - 1)), draw(_starts)
    name, value = fields[place]
    others = list(fields)
    others[place] = name, draw(_lengths if value == b"12" and name.lower() == b"content-length" else _others)
    first, second = (
        b"\r\n".join([start, b"Host: a", *(b"%b: %b" % field for field in each), b"", b""]) for each in (fields, others)
    )
    for where, size, piece in draw(st.just([]) | st.lists(_splices, max_size=2)):
        at = int(where * len(second))
        second = second[:at] + piece + second[at + size :]
    return first, second


@pytest.mark.exhaustive
@settings(max_examples=500)
@given(two_heads())
def test_what_is_taken_for_the_same_means_the_same(protocol: BaseProtocol, heads: tuple[bytes, bytes]) -> None:
    head, changed = heads
    first = read(protocol, head + BODY)
    assume(first is not None)
    last: LastHead[object] = LastHead(of_answer=head.startswith(b"HTTP"))
    last.learn(head + BODY, 12, first)
    found = last.repeated(changed + BODY)
    has_two_ids = head.startswith(b"POST") and head.lower().count(b"\r\nx-request-id:") > 1
    if changed == head:
        assert found == (None if has_two_ids else (len(head), 12))
    if found is not None and found[1] < 1 << 20:
        at, length = found
        second = read(protocol, changed[:at] + b"x" * length)
        assert first is not None
        assert second is not None
        assert (second[0], without_what_differs(*second)) == (first[0], without_what_differs(*first))
        assert int(dict(second[1])["content-length"]) == length
        if last.request_id is not None:
            assert last.request_id.strip().decode() == dict(second[1])["x-request-id"]
        elif not head.startswith(b"HTTP"):
            ids = [[value for name, value in each[1] if name == "x-request-id"] for each in (first, second)]
            assert ids[0] == ids[1]
