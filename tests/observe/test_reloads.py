"""What is kept of the configuration's readings."""

from gateway.config.faults import Fault
from gateway.observe.reloads import KEPT, ReloadState

FAULT = Fault("models.yaml", 3, 5, "models[0].id", "found nothing, expected text")
NOTICE = Fault("routing.yaml", 1, 1, "", "unlisted")
CHANGES = {"weights": ["m/a: 0.6 -> 0.8"]}


def told(state: ReloadState) -> list[tuple[object, object]]:
    history = state.as_dict()["history"]
    assert isinstance(history, list)
    return [(reading["result"], reading.get("hash")) for reading in history]


def test_before_the_first_reading_there_is_nothing() -> None:
    assert ReloadState().as_dict() == {
        "accepted_at": None,
        "rejected_at": None,
        "faults": [],
        "warnings": [],
        "history": [],
    }


def test_readings_are_told_newest_first_without_what_they_lack() -> None:
    state = ReloadState()
    state.accept(0.0, 1, "aaa", ())
    state.reject(1.5, 1, [FAULT])
    assert (state.faults, state.rejected) == ((FAULT,), 1.5)
    state.accept(2.0, 2, "bbb", [NOTICE], CHANGES)
    assert state.as_dict() == {
        "accepted_at": "1970-01-01T00:00:02.000Z",
        "rejected_at": None,
        "faults": [],
        "warnings": [NOTICE.as_dict()],
        "history": [
            {
                "at": "1970-01-01T00:00:02.000Z",
                "result": "accepted",
                "generation": 2,
                "hash": "bbb",
                "changes": CHANGES,
            },
            {"at": "1970-01-01T00:00:01.500Z", "result": "rejected", "generation": 1, "faults": [FAULT.as_dict()]},
            {"at": "1970-01-01T00:00:00.000Z", "result": "accepted", "generation": 1, "hash": "aaa"},
        ],
    }


def test_a_reading_that_changes_nothing_is_kept_where_it_says_something() -> None:
    state = ReloadState()
    state.accept(1.0, 1, "aaa", ())
    state.accept(2.0, 1, "aaa", ())
    assert told(state) == [("accepted", "aaa")]
    state.accept(3.0, 1, "bbb", ())
    assert told(state) == [("accepted", "bbb"), ("accepted", "aaa")]
    state.reject(4.0, 1, [FAULT])
    state.accept(5.0, 1, "bbb", ())
    assert told(state)[:2] == [("accepted", "bbb"), ("rejected", None)]
    assert (state.accepted, state.rejected, state.faults) == (1.0, None, ())


def test_a_new_generation_of_the_same_files_is_kept_once() -> None:
    """A variable in `.env` has changed."""
    state = ReloadState()
    for at, generation in enumerate([1, 2, 2]):
        state.accept(float(at), generation, "aaa", (), CHANGES)
    assert [reading.generation for reading in state.history] == [1, 2]
    assert state.accepted == 1.0


def test_a_rejection_is_kept_once_until_its_faults_are_others() -> None:
    state = ReloadState()
    state.accept(0.0, 1, "aaa", ())
    readings = enumerate([[FAULT], [FAULT], [FAULT, FAULT]], start=1)
    assert [state.reject(float(at), 1, faults) for at, faults in readings] == [True, False, True]
    assert [reading.at for reading in state.history] == [0.0, 1.0, 3.0]
    assert state.rejected == 3.0
    state.accept(4.0, 1, "aaa", ())
    state.reject(5.0, 1, [FAULT, FAULT])
    assert [reading.at for reading in state.history] == [0.0, 1.0, 3.0, 4.0, 5.0]


def test_the_last_twenty_are_kept() -> None:
    state = ReloadState()
    for number in range(1, 30):
        state.accept(float(number), number, str(number), ())
    assert told(state) == [("accepted", str(number)) for number in range(29, 29 - KEPT, -1)]
    assert len(state.history) == 20


def test_what_has_not_changed_is_not_written_again() -> None:
    """Twenty readings with 10,000 faults each took 0.2 seconds, each second while somebody watched the page."""
    state = ReloadState()
    state.reject(0.0, 0, [FAULT])
    first = state.as_dict()
    assert not state.reject(1.0, 0, [FAULT])
    assert state.as_dict() is first
    assert state.reject(2.0, 0, [NOTICE])
    assert state.as_dict()["faults"] == [NOTICE.as_dict()]
    state.accept(3.0, 1, "aaa", ())
    assert (state.as_dict()["faults"], told(state)[0]) == ([], ("accepted", "aaa"))
