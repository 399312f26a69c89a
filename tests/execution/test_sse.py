import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.execution.sse import Event, EventScanner

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


def fed(scanner: EventScanner, chunk: bytes) -> list[Event]:
    return [Event(raw, scanner.data(raw)) for raw in scanner.cut(chunk)]


def scan(*chunks: bytes) -> list[bytes]:
    scanner = EventScanner()
    return [event.data for chunk in chunks for event in fed(scanner, chunk) if event.data is not None]


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


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
@given(streams(), st.data())
def test_the_bytes_out_are_the_bytes_in(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    scanner = EventScanner()
    raw = [
        event.raw
        for start, end in itertools.pairwise([0, *cuts, len(stream)])
        for event in fed(scanner, stream[start:end])
    ]
    waiting = scanner.waiting
    rest = scanner.rest().raw
    assert (b"".join(raw) + rest, waiting, scanner.waiting) == (stream, len(rest), 0)


def test_what_has_not_ended_is_read_as_if_it_had() -> None:
    scanner = EventScanner()
    assert fed(scanner, b"\xef\xbb\xbfdata: a\ndata: b") == []
    assert scanner.rest() == (b"\xef\xbb\xbfdata: a\ndata: b", b"a\nb")
    assert scanner.rest() == (b"", None)


def test_an_event_of_one_line_is_the_same_alone_and_among_others() -> None:
    alone = EventScanner()
    fed(alone, b"data: a\n\n")
    assert fed(alone, b"data:  b\n\n") == [Event(b"data:  b\n\n", b" b")]
    assert fed(alone, b"data: \n\n") == [Event(b"data: \n\n", b"")]
    assert fed(alone, b"data: a\nid: 7\n\n") == [Event(b"data: a\nid: 7\n\n", b"a")]
    assert fed(alone, b"data: a\rb\n\n") == [Event(b"data: a\rb\n\n", b"a")]
    together = EventScanner()
    assert fed(together, b"data: a\n\ndata:  b\n\ndata: \n\n")[1:] == [
        Event(b"data:  b\n\n", b" b"),
        Event(b"data: \n\n", b""),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_only_a_line_that_begins_so_is_data(end: bytes) -> None:
    lines = [b"xdata: no", b"database: no", b"data", b"data:a", b" data: no", b"data: b:c", b"data\t: no", b"data:  d"]
    scanner = EventScanner()
    (raw,) = scanner.cut(end.join(lines) + end + end)
    assert scanner.data(raw) == b"\na\nb:c\n d"
