"""What tests of the whole have in common: a config folder, simulated boxes, gateways that listen."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pytest_aiohttp import AiohttpServer

from gateway.execution.upstream import TRANSPORTS
from gateway.lifecycle import Door, Listen
from gateway.server import Options
from gateway.simulator import Box, create_simulator
from tests.fakes.connection import arrived
from tests.running import Config, open_door

MakeBox = Callable[[Box], Awaitable[str]]
OpenDoor = Callable[[Options], Awaitable[Door]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--transport session`: gateways in this process ask their upstreams that way, and no other test is run."""
    parser.addoption("--transport", choices=TRANSPORTS, default="direct")


def pytest_configure(config: pytest.Config) -> None:
    """Make the transport that is asked for the default one; properties are tried with the same examples, untimed."""
    settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("steady")
    asked = config.getoption("--transport")
    begin = Options.__init__
    begin.__defaults__ = tuple(asked if value == "direct" else value for value in begin.__defaults__ or ())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and all it starts


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another transport makes no difference to: tests that serve nothing, and those that try each."""
    if config.getoption("--transport") == "direct":
        return
    of_use: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        assert isinstance(item, pytest.Function)
        of_use["config" in item.fixturenames and "transport" not in item.fixturenames].append(item)
    items[:] = of_use[True]
    config.hook.pytest_deselected(items=of_use[False])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Let coverage not watch what is `exhaustive`: that takes twice as long then."""
    if item.get_closest_marker("exhaustive") is None:
        return (yield)
    with _unwatched():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Let coverage not watch a process that only hands out the tests."""
    if session.config.getoption("dist", "no") == "no":
        return (yield)
    with _unwatched():
        return (yield)


@contextmanager
def _unwatched() -> Iterator[None]:
    watching = sys.gettrace()
    if type(watching).__module__ != "coverage":  # a debugger's
        yield
        return
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(watching)


@pytest.fixture(scope="session", autouse=True)
def _watching() -> dict[str, str]:
    """Let coverage not watch the processes that tests start: to start one takes two thirds longer then."""
    return {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("COVERAGE_PROCESS_")}


@pytest.fixture
def watched(_watching: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it watch those of this test: they come to lines that are not come to in this process."""
    for name, value in _watching.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return an empty config folder."""
    return Config(tmp_path)


@pytest.fixture
async def aiohttp_server(aiohttp_server: AiohttpServer) -> AsyncIterator[AiohttpServer]:
    """Start servers as pytest-aiohttp does, and close them when they know all who came: a probe may just have come."""
    yield aiohttp_server
    await arrived()


@pytest.fixture
def make_box(aiohttp_server: AiohttpServer) -> MakeBox:
    """Start a simulated box and give its URL: `await make_box(Box("local"))`."""

    async def make(box: Box) -> str:
        server = await aiohttp_server(create_simulator(box), shutdown_timeout=0.1)
        return str(server.make_url("")).rstrip("/")

    return make


@pytest.fixture
async def door(make_box: MakeBox) -> AsyncIterator[OpenDoor]:  # noqa: ARG001 - boxes outlive the gateways before them
    """Serve in this process: `(await door(Options(config.path, environ={}))).urls[0]`."""
    opened: list[Door] = []

    async def make(options: Options) -> Door:
        opened.append(await open_door(options, Listen(port=0)))
        return opened[-1]

    yield make
    await arrived()
    for each in opened:
        await each.close(0)
