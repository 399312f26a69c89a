import pytest

from gateway.execution.outcome import Attempt, Outcome
from gateway.observe.traffic import Served, Traffic

NAMES = ("a", "b")


def outcome(*attempts: tuple[str, str | None]) -> Outcome:
    return Outcome(
        request_id="1",
        operation="chat/completions",
        model="m",
        served_model="m",
        generation=1,
        stream=False,
        status=200,
        attempts=tuple(Attempt("m", name, "local", 1.0, failure=failure) for name, failure in attempts),
        fallback=False,
        duration=1.0,
    )


def test_answers_and_failures_are_counted_where_they_happened() -> None:
    traffic = Traffic()
    traffic(outcome(("a", "server_error"), ("b", None)))
    traffic(outcome(("b", None)))
    traffic(outcome(("a", None)))
    assert traffic.served("m", NAMES) == {"a": Served(1, 1, 1 / 3), "b": Served(2, 0, 2 / 3)}
    assert traffic.served("other", NAMES) == {"a": Served(0, 0, None), "b": Served(0, 0, None)}


@pytest.mark.parametrize("failure", ["client_left", "cut", "local_fault", "internal_error"])
def test_what_is_nobodys_fault_blames_no_deployment(failure: str) -> None:
    traffic = Traffic()
    traffic(outcome(("a", failure)))
    assert traffic.served("m", NAMES)["a"] == Served(0, 0, None)


def test_a_new_configuration_begins_the_shares_anew_and_keeps_the_counts() -> None:
    traffic = Traffic()
    traffic(outcome(("a", None)))
    traffic.rebase()
    assert traffic.served("m", NAMES)["a"] == Served(1, 0, None)
    traffic(outcome(("b", None)))
    assert traffic.served("m", NAMES) == {"a": Served(1, 0, 0.0), "b": Served(1, 0, 1.0)}
