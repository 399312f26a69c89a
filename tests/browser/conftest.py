"""A real browser in front of a real gateway. Tests are skipped where there is no Chromium or no playwright."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Literal, Protocol

import pytest
import pytest_asyncio

from tests.fakes.upstream import Hang, ScriptedUpstream

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

PATIENCE = 60_000
"""Milliseconds that a page may take on a machine under load. A guard, never a measure."""

Theme = Literal["light", "dark"]


class Blank(Protocol):
    """Gives a page that is nowhere yet."""

    async def __call__(self, width: int = 1440, theme: Theme = "light") -> "Page": ...


class Look(Protocol):
    """Opens a page and waits until it is live."""

    async def __call__(self, url: str, width: int = 1440, theme: Theme = "light") -> "Page": ...


class Hush(Protocol):
    """Lets no state come to a page, until it is routed in another way."""

    async def __call__(self, page: "Page") -> None: ...


class Complaints(list[str]):
    """What a page has complained of: console errors, violations of its policy, exceptions."""

    def watch(self, page: "Page") -> None:
        page.on("console", lambda said: self.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on(
            "response", lambda answer: self.append(f"{answer.url}: {answer.status}") if answer.status >= 400 else None
        )


@pytest.fixture
def complaints() -> Complaints:
    """What the pages of this test have complained of."""
    return Complaints()


@pytest.fixture
def _function_scoped_runner(_session_scoped_runner: asyncio.Runner) -> asyncio.Runner:
    """Run these tests, and what they use, on one loop, which the browser belongs to: pytest-asyncio looks here."""
    return _session_scoped_runner


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> "AsyncIterator[Browser]":
    """Start a browser once: to start it takes longer than what is looked at."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    api.expect.set_options(timeout=PATIENCE)
    async with api.async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=PATIENCE)
        yield started
        await started.close()


@pytest.fixture
async def blank(browser: "Browser", complaints: Complaints) -> AsyncIterator[Blank]:
    """Give a page of its own profile: `await blank(width=390, theme="dark")`."""
    async with AsyncExitStack() as contexts:

        async def made(width: int = 1440, theme: Theme = "light") -> "Page":
            context = await browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            contexts.push_async_callback(context.close)
            context.set_default_timeout(PATIENCE)
            page: Page = await context.new_page()
            complaints.watch(page)
            return page

        yield made


@pytest.fixture
async def look(blank: Blank) -> Look:
    """Open a page and wait until it is live: `await look(url, width=390, theme="dark")`."""

    async def opened(url: str, width: int = 1440, theme: Theme = "light") -> "Page":
        page = await blank(width, theme)
        await page.goto(url)
        await page.locator('body[data-connection="live"]').wait_for()
        return page

    return opened


@pytest.fixture
async def hush() -> AsyncIterator[Hush]:
    """Let no state come to a page: `await hush(page)`.

    The requests go to where nothing is answered. A route that is never handled would wait in a task for good, and the
    collector would complain of it in whichever test is running then.
    """
    async with ScriptedUpstream([Hang()]) as silent:

        async def hushed(page: "Page") -> None:
            await page.route("**/events", lambda route: route.continue_(url=silent.url))

        yield hushed
