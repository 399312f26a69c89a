"""What a finished request says of its attempts."""

import pytest

from gateway.execution.outcome import Attempt, Outcome


def attempt(name: str, failure: str | None = None, status: int | None = 200, rescue: str | None = None) -> Attempt:
    return Attempt("m", name, "local", 1.0, status, failure, rescue=rescue)


def outcome(*attempts: Attempt, status: int = 200, served: str | None = "m") -> Outcome:
    return Outcome(
        request_id="r",
        operation="chat/completions",
        model="m",
        served_model=served,
        generation=1,
        stream=True,
        status=status,
        attempts=attempts,
        fallback=False,
        duration=1.0,
    )


CUT, REFUSED = "cut_answer", "connect_refused"


@pytest.mark.parametrize(
    ("attempts", "status", "answered"),
    [
        ([attempt("a")], 200, "a"),
        ([attempt("a", REFUSED, None), attempt("b")], 200, "b"),
        ([attempt("a", "rate_limited", 429), attempt("b", None, 400)], 400, "b"),
        ([attempt("a", CUT)], 200, "a"),
        ([attempt("a", "server_error", 500), attempt("b", CUT)], 200, "b"),
        ([attempt("a", "client_left")], 499, "a"),
        ([attempt("a", REFUSED, None), attempt("b", "client_left")], 499, "b"),
        ([attempt("a", CUT), attempt("b", None, rescue="replay")], 200, "b"),
        ([attempt("a", CUT), attempt("b", REFUSED, None, "replay"), attempt("c", rescue="replay")], 200, "c"),
        ([attempt("a", CUT), attempt("b", REFUSED, None, "continue")], 200, "a"),
        ([attempt("a", CUT), attempt("b", CUT, rescue="continue"), attempt("c", CUT, rescue="replay")], 200, "a"),
        ([attempt("a", "error_answer"), attempt("b", CUT)], 200, "b"),
        ([attempt("a", "empty_answer"), attempt("b", CUT), attempt("c", CUT, rescue="replay")], 200, "b"),
    ],
)
def test_who_answered_is_told(attempts: list[Attempt], status: int, answered: str) -> None:
    found = outcome(*attempts, status=status).answered
    assert found is not None
    assert found.deployment == answered


@pytest.mark.parametrize("attempts", [[], [attempt("a", REFUSED, None)], [attempt("a", CUT), attempt("b", CUT)]])
def test_nobody_answered_where_no_model_served(attempts: list[Attempt]) -> None:
    assert outcome(*attempts, status=502, served=None).answered is None


@pytest.mark.parametrize(
    ("attempts", "told"),
    [
        ([], None),
        ([attempt("a")], None),
        ([attempt("a", CUT), attempt("b", rescue="replay")], "replay"),
        ([attempt("a", CUT), attempt("b", "rescue_refused", 400, "continue"), attempt("b", rescue="replay")], "replay"),
        ([attempt("a", CUT), attempt("b", CUT, rescue="replay"), attempt("c", rescue="continue")], "continue"),
        ([attempt("a", CUT), attempt("b", "rescue_refused", 400, "continue")], None),
        ([attempt("a", CUT), attempt("b", CUT, rescue="continue"), attempt("c", CUT, rescue="replay")], None),
        ([attempt("a", CUT), attempt("b", "client_left", rescue="continue")], None),
    ],
)
def test_a_rescue_is_told_where_it_brought_the_stream_to_its_end(attempts: list[Attempt], told: str | None) -> None:
    """A rescue that failed used to be told, too."""
    assert outcome(*attempts).rescue == told
