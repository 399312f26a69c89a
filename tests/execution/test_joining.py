"""Joining two streams: nothing is lost and nothing is said twice, wherever they are cut."""

from collections.abc import Iterable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.execution.chunks import Piece
from gateway.execution.joining import Continuation, DiffersError, Joiner, Replay, Transcript

Events = list[tuple[Piece, ...]]
Runs = tuple[Piece, ...]

PARTS = ["content", "reasoning", "refusal", "tool 0 name", "tool 0 arguments", "tool 1 name", "tool 1 arguments"]
TELLING = 16
TEXTS = st.text(st.sampled_from("abc \n\té😀"), max_size=40)
LONG = st.text(st.sampled_from("abc é😀"), min_size=TELLING, max_size=40)


def runs(*texts: tuple[str, str]) -> Runs:
    return tuple(Piece(part, text) for part, text in texts)


def joined(pieces: Iterable[Piece]) -> Runs:
    transcript = Transcript()
    for piece in pieces:
        transcript.add(*piece)
    return transcript.runs()


def content(text: str) -> Runs:
    return joined([Piece("content", text)])


@st.composite
def answers(draw: st.DrawFn) -> Runs:
    """Draw runs as an answer may have them: text of the same part never stands in two neighbours."""
    return joined(draw(st.lists(st.builds(Piece, st.sampled_from(PARTS), st.text("ab{}é", max_size=6)), max_size=6)))


@st.composite
def cut_up(draw: st.DrawFn, answer: Runs) -> Events:
    """Draw events that say an answer; some say nothing."""
    letters = [Piece(part, letter) for part, text in answer for letter in text]
    ends = sorted(draw(st.lists(st.integers(0, len(letters)), max_size=6)))
    return [joined(letters[start:end]) for start, end in zip([0, *ends], [*ends, len(letters)], strict=True)]


def halves(answer: Runs, place: int) -> tuple[Runs, Runs]:
    letters = [Piece(part, letter) for part, text in answer for letter in text]
    return joined(letters[:place]), joined(letters[place:])


def length(answer: Runs) -> int:
    return sum(len(piece.text) for piece in answer)


def repeats_itself(text: str) -> bool:
    """Tell whether a text could go on with what it began with, so that nobody can tell that from beginning again."""
    return any(text[place:] == text[:-place] for place in range(1, len(text) // 2 + 1))


def take(joiner: Joiner, events: Events) -> tuple[Runs, bool]:
    """Give what a client gets of a second stream, and whether that ended well."""
    got: list[Piece] = []
    withheld: list[Piece] = []
    try:
        for pieces in events:
            new = joiner.new(pieces)
            if new is None:
                withheld += pieces
                continue
            if not joiner.repeats:
                got += withheld
            withheld = []
            got += [Piece(piece.part, text) for piece, text in zip(pieces, new, strict=True)]
        joiner.end()
    except DiffersError:
        return joined(got), False
    return joined([*got, *([] if joiner.repeats else withheld)]), True


@pytest.mark.exhaustive
@given(answers(), st.data())
def test_a_replay_gives_the_rest(answer: Runs, data: st.DataObject) -> None:
    said, rest = halves(answer, data.draw(st.integers(0, length(answer))))
    replay = Replay(said)
    assert take(replay, data.draw(cut_up(answer))) == (rest, True)
    assert replay.settled


@given(TEXTS, TEXTS, st.data())
def test_a_continuation_gives_the_rest(before: str, after: str, data: st.DataObject) -> None:
    assume(len(before) < TELLING or not after.startswith(before))
    continuation = Continuation(content(before))
    assert take(continuation, data.draw(cut_up(content(after)))) == (content(after), True)
    assert not continuation.repeats


@given(LONG, TEXTS, st.data())
@example("aaaaaaaaab c é 😀", " and", None)
def test_a_continuation_that_begins_again_is_recognised(before: str, after: str, data: st.DataObject | None) -> None:
    assume(not repeats_itself(before))
    events = [content(before + after)] if data is None else data.draw(cut_up(content(before + after)))
    continuation = Continuation(content(before))
    assert take(continuation, events) == (content(after), True)
    assert continuation.repeats


@given(LONG, st.integers(1, 40), TEXTS, st.data())
@example("once upon a time", 15, "", None)
@example("once upon a time", 15, "b", None)
@example("once upon a time", 15, "o", None)
def test_what_repeats_a_part_and_turns_away_loses_nothing(
    before: str, size: int, after: str, data: st.DataObject | None
) -> None:
    text = before[: min(size, len(before) - 1)] + after
    assume(not text.startswith(before))
    events = [tuple(content(letter)) for letter in text] if data is None else data.draw(cut_up(content(text)))
    continuation = Continuation(content(before))
    assert take(continuation, events) == (content(text), True)
    assert not continuation.repeats


@given(LONG, LONG, st.data())
def test_a_continuation_of_several_parts_gives_the_rest(before: str, after: str, data: st.DataObject) -> None:
    rest = runs(("content", after), ("tool 0 name", "f"), ("tool 0 arguments", "{}"))
    assume(not after.startswith(before))
    assert take(Continuation(content(before)), data.draw(cut_up(rest))) == (rest, True)


@pytest.mark.exhaustive
@given(answers(), st.data())
def test_a_replay_that_differs_gives_nothing(answer: Runs, data: st.DataObject) -> None:
    assume(answer)
    size = length(answer)
    said, _ = halves(answer, data.draw(st.integers(1, size)))
    place = data.draw(st.integers(0, length(said) - 1))
    same, other = halves(answer, place)
    wrong = data.draw(st.sampled_from(["x", "part"]))
    part, text = other[0]
    turned = Piece(part, "x" + text[1:]) if wrong == "x" else Piece("text", text)
    events = data.draw(cut_up((*same, turned, *other[1:])))
    assert take(Replay(said), events) == ((), False)


@pytest.mark.exhaustive
@given(answers(), st.data())
def test_a_replay_that_ends_early_differs(answer: Runs, data: st.DataObject) -> None:
    assume(answer)
    less, _ = halves(answer, data.draw(st.integers(0, length(answer) - 1)))
    assert take(Replay(answer), data.draw(cut_up(less))) == ((), False)


@pytest.mark.parametrize(
    ("said", "event", "new"),
    [
        ([], [("content", "a")], ("a",)),
        ([("content", "a")], [("content", "a")], ("",)),
        ([("content", "a")], [("content", "ab")], ("b",)),
        ([("content", "a")], [("content", "ab"), ("refusal", "c")], ("b", "c")),
        ([("reasoning", "a")], [("reasoning", "ab"), ("content", "c")], ("b", "c")),
        ([("reasoning", "a"), ("content", "c")], [("reasoning", "a"), ("content", "cd")], ("", "d")),
        ([("reasoning", "a")], [("content", ""), ("reasoning", "ab")], ("", "b")),
        ([("tool 0 name", "f")], [("tool 0 name", "f"), ("tool 0 arguments", "{")], ("", "{")),
        ([("tool 0 name", "f")], [("tool 0 name", "fg"), ("tool 0 arguments", "")], ("g", "")),
        (
            [("tool 0 name", "f"), ("tool 0 arguments", "{}")],
            [("tool 0 name", "f"), ("tool 0 arguments", "{}"), ("tool 1 name", "g"), ("tool 1 arguments", "")],
            ("", "", "g", ""),
        ),
    ],
)
def test_what_is_new_is_told_piece_by_piece(
    said: list[tuple[str, str]], event: list[tuple[str, str]], new: tuple[str, ...]
) -> None:
    assert Replay(runs(*said)).new(runs(*event)) == new


@pytest.mark.parametrize(
    ("said", "event"),
    [
        ([("content", "a")], [("content", "b")]),
        ([("content", "a")], [("content", "A")]),
        ([("content", "a")], [("text", "a")]),
        ([("content", "ab")], [("content", "ac")]),
        ([("reasoning", "a"), ("content", "b")], [("reasoning", "ab")]),
        ([("reasoning", "a"), ("content", "b")], [("content", "b"), ("reasoning", "a")]),
        ([("content", "a"), ("tool 0 name", "f")], [("content", "a"), ("tool 1 name", "f")]),
        ([("tool 0 name", "f"), ("tool 0 arguments", "{")], [("tool 0 name", "f"), ("tool 0 arguments", "[")]),
        ([("tool 0 name", "f"), ("tool 0 arguments", "{")], [("tool 0 name", "fg")]),
        ([("content", "é")], [("content", "e\u0301")]),
    ],
)
def test_a_replay_has_to_say_the_same(said: list[tuple[str, str]], event: list[tuple[str, str]]) -> None:
    with pytest.raises(DiffersError):
        Replay(runs(*said)).new(runs(*event))


def test_of_a_few_characters_nothing_can_be_told() -> None:
    text = "x" * (TELLING - 1)
    assert Continuation(content(text)).new(content(text)) == (text,)
    assert Continuation(content(text + "x")).new(content(text)) is None
    assert Continuation(()).new(content("a")) == ("a",)


def test_a_continuation_decides_once() -> None:
    text = "once upon a time "
    again = Continuation(content(text))
    assert [again.new(content(part)) for part in (text[:9], text[9:], text)] == [None, ("",), (text,)]
    turned = Continuation(content(text))
    assert [turned.new(content(part)) for part in (text[:9], "x", text)] == [None, ("x",), (text,)]
    assert (again.repeats, turned.repeats) == (True, False)


def test_what_ends_is_decided() -> None:
    text = "once upon a time "
    ended = Continuation(content(text))
    assert ended.new(content(text[:9])) is None
    ended.end()
    assert (ended.repeats, ended.new(content(text))) == (False, (text,))


def test_what_thinks_first_does_not_go_on_with_a_text() -> None:
    """It begins again, in its own words or in the same; or a parser takes the rest of the answer for reasoning."""
    said = content("once upon a time there was")
    events = [runs(("reasoning", "Hm. ")), said, content(" a box.")]
    got, whole = take(Continuation(said), events)
    assert (got, whole) in (((), False), (content(" a box."), True))


def test_a_text_that_repeats_itself_may_go_on_so() -> None:
    """A ruler, a table's line: whoever goes on with it says what it began with."""
    line = "-" * 40
    got, whole = take(Continuation(content(line)), [content("-") for _ in range(40)] + [content("\n")])
    assert (got, whole) in ((content(line + "\n"), True), ((), False))


@pytest.mark.parametrize(
    "text", ["once upon a time" * 2, "and so on, " * 3 + "and", "no, no, yes, " * 3, "-" * TELLING, "-" * (TELLING + 1)]
)
def test_of_a_text_that_goes_round_in_circles_nothing_can_be_told(text: str) -> None:
    with pytest.raises(DiffersError):
        Continuation(content(text)).new(content(text))


@pytest.mark.parametrize("text", ["ab" * 9 + "b", "once upon a time, once upon", "no, no, no, no, no, no, yes"])
def test_a_text_that_left_its_circles_can_be_told(text: str) -> None:
    again = Continuation(content(text))
    assert (again.new(content(text + "!")), again.repeats) == (("!",), True)


def test_a_long_text_that_left_its_circles_is_told_soon() -> None:
    """It took as long as the square of its length: minutes for a MiB, and nobody was served meanwhile."""
    text = "-" * ((1 << 20) - 1) + "."
    assert Continuation(content(text)).new(content(text)) == ("",)


def test_a_transcript_joins_what_adds_to_the_same_part() -> None:
    pieces = runs(("content", "a"), ("content", ""), ("content", "b"), ("reasoning", ""), ("content", "c"))
    assert joined(pieces) == runs(("content", "abc"))
    assert joined(runs(("content", "a"), ("refusal", "b"), ("content", "c"))) == runs(
        ("content", "a"), ("refusal", "b"), ("content", "c")
    )
    assert joined([]) == ()
