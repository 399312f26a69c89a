from collections.abc import Iterable
from dataclasses import replace

import pytest

from gateway.config.faults import ConfigError, Fault
from gateway.config.sources import Sources
from gateway.reload import Comparison, Pace, Reading, Verdict

REST, SETTLE, BUILD = Verdict.REST, Verdict.SETTLE, Verdict.BUILD

FIRST = Sources(models=b"first", routing=b"split", env=None, legacy=None)
SECOND = replace(FIRST, models=b"second")
THIRD = replace(FIRST, models=b"third")
NO_MODELS = replace(FIRST, models=None)
NO_ROUTING = replace(FIRST, routing=None)
UNREADABLE = ConfigError([Fault("models.yaml", 0, 0, "", "cannot be read: permission denied")])


def comparison(looked_at: Reading = FIRST) -> Comparison:
    made = Comparison(Pace())
    made.looked_at(looked_at)
    return made


def verdicts(made: Comparison, readings: Iterable[tuple[float, Reading]]) -> list[Verdict]:
    return [made.judge(reading, now) for now, reading in readings]


def test_what_was_looked_at_rests() -> None:
    assert verdicts(comparison(), [(0, FIRST), (1, FIRST)]) == [REST, REST]


def test_the_very_first_reading_settles_too() -> None:
    assert verdicts(Comparison(Pace()), [(0, FIRST), (0.1, FIRST)]) == [SETTLE, BUILD]


@pytest.mark.parametrize(
    "changed",
    [
        SECOND,
        replace(FIRST, routing=b"other"),
        replace(FIRST, env=b"KEY=1"),
        replace(FIRST, legacy="deployment.yaml"),
        UNREADABLE,
    ],
    ids=repr,
)
def test_a_change_counts_when_two_readings_in_a_row_agree(changed: Reading) -> None:
    assert verdicts(comparison(), [(0, changed), (0.1, changed)]) == [SETTLE, BUILD]


def test_readings_that_differ_settle_further() -> None:
    assert verdicts(comparison(), [(0, SECOND), (0.1, THIRD), (0.2, SECOND), (0.3, SECOND)]) == [
        SETTLE,
        SETTLE,
        SETTLE,
        BUILD,
    ]


def test_a_change_that_is_taken_back_while_it_settles_rests() -> None:
    assert verdicts(comparison(), [(0, SECOND), (0.1, FIRST), (0.2, SECOND)]) == [SETTLE, REST, SETTLE]


def test_contents_that_never_rest_are_taken_when_patience_ends() -> None:
    made = comparison()
    assert verdicts(made, [(10, SECOND), (11, THIRD), (11.9, SECOND), (12, THIRD)]) == [SETTLE, SETTLE, SETTLE, BUILD]
    made.looked_at(THIRD)
    assert verdicts(made, [(13, SECOND), (14.9, FIRST)]) == [SETTLE, SETTLE]


def test_patience_begins_anew_after_a_rest() -> None:
    assert verdicts(comparison(), [(0, SECOND), (1, FIRST), (2, SECOND), (3.9, THIRD)]) == [
        SETTLE,
        REST,
        SETTLE,
        SETTLE,
    ]


@pytest.mark.parametrize("missing", [NO_MODELS, NO_ROUTING], ids=repr)
def test_a_file_that_is_gone_may_come_back_within_the_grace(missing: Sources) -> None:
    assert verdicts(comparison(), [(0, missing), (1.9, missing), (1.95, FIRST)]) == [REST, REST, REST]


def test_a_file_that_comes_back_changed_settles() -> None:
    assert verdicts(comparison(), [(0, NO_MODELS), (1, SECOND), (1.1, SECOND)]) == [REST, SETTLE, BUILD]


@pytest.mark.parametrize("missing", [NO_MODELS, NO_ROUTING], ids=repr)
def test_a_file_that_stays_away_is_taken_as_removed(missing: Sources) -> None:
    assert verdicts(comparison(), [(0, missing), (2, missing)]) == [REST, BUILD]


def test_a_removed_env_has_the_same_grace() -> None:
    made = comparison(replace(FIRST, env=b"KEY=1"))
    assert verdicts(made, [(0, FIRST), (1.9, FIRST), (2, FIRST)]) == [REST, REST, BUILD]


def test_a_grace_begins_when_its_own_file_goes() -> None:
    neither = Sources(models=None, routing=None, env=None, legacy=None)
    assert verdicts(comparison(), [(0, NO_MODELS), (1.5, neither), (2, neither), (3.5, neither)]) == [
        REST,
        REST,
        REST,
        BUILD,
    ]


def test_a_grace_ends_when_the_file_is_back() -> None:
    assert verdicts(comparison(), [(0, NO_MODELS), (1, FIRST), (2, NO_MODELS), (3.9, NO_MODELS)]) == [REST] * 4


def test_a_file_that_was_never_there_is_not_missing() -> None:
    without = replace(NO_ROUTING, models=b"other")
    assert verdicts(comparison(NO_ROUTING), [(0, without), (0.1, without)]) == [SETTLE, BUILD]


def test_a_removed_file_is_reported_once() -> None:
    made = comparison()
    made.looked_at(NO_MODELS)
    assert verdicts(made, [(0, NO_MODELS), (5, NO_MODELS)]) == [REST, REST]


def test_an_unreadable_file_is_not_missing_and_what_was_there_is_remembered() -> None:
    made = comparison()
    assert verdicts(made, [(0, UNREADABLE), (0.1, UNREADABLE)]) == [SETTLE, BUILD]
    made.looked_at(UNREADABLE)
    assert verdicts(made, [(1, UNREADABLE), (1.1, NO_MODELS), (3.1, NO_MODELS)]) == [REST, REST, BUILD]


def test_the_same_error_read_again_is_no_change() -> None:
    made = comparison(UNREADABLE)
    assert made.judge(ConfigError(UNREADABLE.faults), 0) is REST


def test_who_asks_gets_a_build_of_what_was_looked_at() -> None:
    assert comparison().judge(FIRST, 0, asked=True) is BUILD


def test_who_asks_does_not_wait_for_a_missing_file_but_for_a_change_to_settle() -> None:
    made = comparison()
    assert [made.judge(NO_MODELS, now, asked=True) for now in (0, 0.1)] == [SETTLE, BUILD]
