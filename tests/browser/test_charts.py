"""The charts, from states of a clock of the test's own."""

import re

import pytest

from gateway.execution.outcome import MOST_TOKENS
from gateway.observe.board import Board
from gateway.observe.live import Live
from gateway.observe.models import Models
from gateway.observe.reloads import ReloadState
from gateway.observe.traffic import Traffic
from gateway.routing.manager import RoutingManager
from gateway.server import Options
from tests.browser import labels
from tests.browser.conftest import Blank, Hush
from tests.conftest import OpenDoor
from tests.observe.outcomes import count, ended
from tests.running import Config

pytest.importorskip("playwright.async_api", reason="playwright is not installed")
from playwright.async_api import Page, Route, expect

MINUTE = 1_800_000_000
SPAN = 120
"""Seconds that a chart shows at least."""


@pytest.fixture
async def page(config: Config, door: OpenDoor, hush: Hush, blank: Blank) -> Page:
    """Open the page and let it wait for its first state."""
    config.models(m={"a": "http://127.0.0.1:1"})
    config.routing()
    opened = await door(Options(config.path, environ={}))
    made = await blank()
    await labels.record(made)
    await hush(made)
    await made.goto(opened.urls[0])
    return made


async def state(end: int, tokens: int = 20) -> bytes:
    """Give the state of a gateway that began two minutes before this second, and answered once with so many tokens."""
    now = end - SPAN + 0.5
    live, manager = Live(lambda: now), RoutingManager()
    count(live, ended(first=250.0, tokens=tokens))
    now = end + 1.5
    board = Board(
        manager=manager,
        models=Models(manager, Traffic(), {}),
        live=live,
        in_flight={},
        reloads=ReloadState().as_dict,
        money=lambda: None,
        clock=lambda: now,
    )
    await board.tick()
    return board.full()


async def show(page: Page, told: bytes) -> list[labels.Chart]:
    """Tell the page this state, and no more; give the charts that it comes to."""

    async def answer(route: Route) -> None:
        await route.fulfill(content_type="text/event-stream", body=b"data: %b\n\n" % told)

    await page.unroute("**/events")
    await page.route("**/events", answer)
    await page.reload()
    await expect(page.locator("#version")).to_contain_text("gateway")
    return await labels.read(page)


def times(charts: list[labels.Chart]) -> set[str]:
    return {text for chart in charts for text in chart.texts if re.fullmatch(r"\d\d:\d\d", text)}


async def test_before_the_first_state_there_is_no_time(page: Page) -> None:
    charts = await labels.read(page)
    assert [chart.faults for chart in charts] == [[]] * 4
    assert "0 ms" in charts[1].texts
    assert times(charts) == set()


@pytest.mark.parametrize("past", [0, 5, 30, 55])
async def test_the_labels_of_both_axes_keep_apart(page: Page, past: int) -> None:
    charts = await show(page, await state(MINUTE + past))
    assert [chart.faults for chart in charts] == [[]] * 4
    assert len(times(charts)) in {1, 2}


async def test_numbers_are_no_longer_than_their_room(page: Page) -> None:
    charts = await show(page, await state(MINUTE + 30, tokens=MOST_TOKENS))
    assert [chart.faults for chart in charts] == [[]] * 4
    assert "10G" in charts[2].texts


async def test_large_numbers_have_a_letter(page: Page) -> None:
    told = "async (values) => { const { count, compact } = await import('./assets/format.js'); return values.map("
    values = [0, 0.5, 999, 12_345, 99_999, 100_000, 999_949, 999_950, 12_500_000, 3e9, 9.999e14, 1e15, 1e30]
    assert await page.evaluate(f"{told}compact) }}", values) == [
        *("0", "0.5", "999", "12.3k", "100k", "100k", "999.9k", "1M", "12.5M", "3G", "999.9T", ">999T", ">999T"),
    ]
    assert await page.evaluate(f"{told}count) }}", [0, 12_345, 99_999, 100_000]) == ["0", "12,345", "99,999", "100k"]


async def test_a_clock_that_goes_back_far_begins_the_seconds_anew(page: Page) -> None:
    kept = await page.evaluate("""async () => {
      const { State } = await import("./assets/state.js");
      const [state, none] = [new State(), { models: [], endpoints: [], requests: [] }];
      return [[1000.5, 998, 999], [991.5, 990], [400.5, 399], [401.5, 400]].map(([at, ...times]) => {
        state.take({ ...none, at, seconds: times.map((time) => [time]) });
        return state.seconds.flat();
      });
    }""")
    assert kept == [[998, 999], [998, 999], [399], [399, 400]]
