"""What is done to Python's memory when a configuration is built and in force."""

import gc
import sys
from collections.abc import Iterator
from threading import Thread

import pytest

from gateway import heap
from gateway.heap import building, settle
from gateway.routing.succession import Succession
from tests.routing.planning import make


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def pace() -> tuple[bool, float]:
    """Tell whether garbage is collected, and how long a thread's turn is."""
    return gc.isenabled(), sys.getswitchinterval()


class Ring:
    """A cycle, which only the collector frees."""

    alive = 0

    def __init__(self) -> None:
        self.me = self
        Ring.alive += 1

    def __del__(self) -> None:
        Ring.alive -= 1


def test_builds_without_collections_and_in_short_turns() -> None:
    before = pace()
    with building():
        collects, turn = pace()
        assert not collects
        assert turn < before[1]
    assert pace() == before


def test_a_program_that_collects_nothing_goes_on_so() -> None:
    gc.disable()
    try:
        with building():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_goes_back_to_the_old_pace_when_a_build_fails() -> None:
    before = pace()
    with pytest.raises(ValueError, match="bad"), building():
        raise ValueError("bad")
    assert pace() == before


def test_two_builds_at_once_leave_the_pace_as_it_was() -> None:
    before = pace()

    def build() -> None:
        for _ in range(200):
            with building():
                pass

    threads = [Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pace() == before


def test_takes_what_lives_out_of_the_collectors_sight() -> None:
    kept = [Ring()]
    settle(idle=False)
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] > 700
    kept.clear()
    gc.collect()
    assert Ring.alive == 1
    settle(idle=True)
    assert Ring.alive == 0


def test_looks_for_garbage_without_quiet_where_much_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where requests never paused, each save used to keep what those under way had hold of, for good."""
    kept = [Ring()]
    settle(idle=True)
    kept.clear()
    settle(idle=False)
    assert Ring.alive == 1
    monkeypatch.setattr(heap._hidden, "most", heap._hidden.most // 3)
    monkeypatch.setattr(heap._hidden, "before", gc.get_count()[0])
    settle(idle=False)
    assert Ring.alive == 0
    assert heap._hidden.most == gc.get_freeze_count()


def test_a_configuration_that_has_grown_is_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look for garbage among 10,000 models holds the loop for a second."""
    kept = [Ring()]
    settle(idle=True)
    kept.clear()
    monkeypatch.setattr(heap._hidden, "most", heap._hidden.most // 3)
    with building():
        grown = [[number] for number in range(heap._hidden.most)]
        settle(idle=False)
    assert Ring.alive == 1
    assert grown
    settle(idle=True)


def test_building_and_comparing_leaves_nothing_for_the_collector() -> None:
    """A cycle was left for each model that was compared, and hidden from the collector for good."""
    models = "models:\n" + "".join(f"  - {{id: m{number}, base_url: 'http://a:1'}}\n" for number in range(100))

    def build() -> None:
        changes = Succession.of(make(models, "timeout: 2\n"), make(models, "timeout: 3\n")).changes
        assert changes is not None
        assert changes.as_dict() == {"settings": ["timeout: 2 -> 3"]}

    build()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        build()
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()
