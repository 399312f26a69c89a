import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction
from types import MappingProxyType

import pytest
from msgspec.structs import replace

from gateway.execution.probe import Prober
from gateway.execution.upstream import TRANSPORTS, Transport, Upstream
from gateway.routing.health import ProbeResult
from gateway.routing.snapshot import Catalogue, Clocks, Model, Route, Settings, Snapshot
from tests.execution.support import deployment, no_descriptors
from tests.fakes.upstream import Hang, Pause, ScriptedUpstream, Send, Step, refused_url, status
from tests.running import until


def snapshot(*urls: str, interval: float = 60, timeout: float = 5, path: str = "/health") -> Snapshot:
    deployments = [deployment(url, path) for url in urls]
    whole = (Fraction(1),)
    routes = MappingProxyType(
        {
            url: Route(url, "random", (only,), whole, whole, (1.0,), Clocks(), (), "off")
            for url, only in zip(urls, deployments, strict=True)
        }
    )
    return Snapshot(
        generation=1,
        revision=0,
        digest="",
        routes=routes,
        catalogue=Catalogue.of(tuple(Model(url, (), MappingProxyType({})) for url in urls), routes),
        inactive=(),
        down=frozenset(),
        settings=Settings(health_interval=interval, clocks=Clocks(connect=timeout)),
    )


class Watch:
    """A prober whose time stands still: each sleep waits for `turn`."""

    def __init__(self, transport: Transport) -> None:
        self.upstream = Upstream(transport=transport)
        self.prober = Prober(self.upstream, self._report, lambda: 0.5, self._sleep)
        self.found: list[tuple[str, ProbeResult]] = []
        self.slept: list[float] = []
        self.turn = asyncio.Event()
        self.fails = False

    def _report(self, endpoint: str, result: ProbeResult) -> None:
        self.found.append((endpoint, result))
        if self.fails:
            raise RuntimeError("not told")

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.turn.wait()
        self.turn.clear()

    async def finds(self, number: int) -> ProbeResult:
        """Wait until n probes have ended; give what the last one found."""
        await until(lambda: len(self.slept) >= number)
        return self.found[-1][1]


@pytest.fixture(params=TRANSPORTS)
async def watch(request: pytest.FixtureRequest) -> AsyncIterator[Watch]:
    made = Watch(request.param)
    yield made
    await made.prober.close()
    await made.upstream.close()


async def test_the_first_probe_runs_at_once_the_second_soon_and_the_rest_in_a_jittered_rhythm(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        watch.prober.follow(snapshot(a.url))
        assert await watch.finds(1) == ProbeResult()
        for number in (2, 3):
            watch.turn.set()
            await watch.finds(number)
        assert watch.slept == [30, 57, 57]
        assert watch.found == [(a.url, ProbeResult())] * 3
        assert [(request.method, request.target) for request in a.requests] == [("GET", "/health")] * 3
        assert (a.connections, a.requests[0].values("connection")) == (3, ["close"])
        assert a.requests[0].values("authorization") == []


@pytest.mark.parametrize("code", [200, 204, 302, 401, 404, 405, 429, 499])
async def test_any_answer_below_500_is_alive(watch: Watch, code: int) -> None:
    async with ScriptedUpstream([Send(status(code, "So"))]) as a:
        watch.prober.follow(snapshot(a.url))
        assert (await watch.finds(1)).alive
        assert len(a.requests) == 1


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([Send(status(503, "Loading"))], "status 503"),
        ([Send(status(500, "No"))], "status 500"),
        ([Send(b"SSH-2.0-OpenSSH\r\n")], "malformed_answer"),
        ([Hang()], "timeout"),
    ],
)
async def test_everything_else_is_dead(watch: Watch, steps: list[Step], reason: str) -> None:
    async with ScriptedUpstream(steps) as a:
        watch.prober.follow(snapshot(a.url, timeout=0.05 if reason == "timeout" else 5))
        assert await watch.finds(1) == ProbeResult(reason)
        await a.closed_by_peer()


@pytest.mark.parametrize(
    "body", [b'{"error":{"message":"Loading model","code":503}}', b"the model is currently loading"]
)
async def test_a_box_that_loads_is_asked_again_soon(watch: Watch, body: bytes) -> None:
    async with ScriptedUpstream(lambda index, _: [Send(status(200 if index else 503, "So", body))]) as a:
        watch.prober.follow(snapshot(a.url))
        assert await watch.finds(1) == ProbeResult("loading", loading=True)
        watch.turn.set()
        assert await watch.finds(2) == ProbeResult()
        assert watch.slept == [2, 57]


async def test_a_probe_is_brought_forward_for_its_endpoint_alone(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a, ScriptedUpstream([Send(status(200, "OK"))]) as b:
        watch.prober.follow(snapshot(a.url, b.url))
        await watch.finds(2)
        watch.prober.hurry(a.url)
        await until(lambda: len(watch.slept) == 3)
        watch.turn.set()
        await until(lambda: len(a.requests) == 2)
        assert watch.slept[:3] == [30, 30, 2]


async def test_a_body_that_never_ends_is_not_waited_for(watch: Watch) -> None:
    head = status(503, "Loading").replace(b"content-length: 0", b"content-length: 99")
    assert head.endswith(b"\r\n\r\n")
    async with ScriptedUpstream([Send(head + b"Loading model"), Hang()]) as a:
        watch.prober.follow(snapshot(a.url))
        assert await watch.finds(1) == ProbeResult("loading", loading=True)
        await a.closed_by_peer()


async def test_a_url_that_names_a_user_is_asked_as_well(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        url = a.url.replace("http://", "http://me:secret@")
        assert await watch.upstream.probe(f"{url}/health", timeout=5) == (200, b"")
        assert a.requests[0].values("authorization") == ["Basic bWU6c2VjcmV0"]


async def test_a_refused_connection_is_dead(watch: Watch) -> None:
    watch.prober.follow(snapshot(refused_url()))
    assert await watch.finds(1) == ProbeResult("connect_refused")


async def test_a_fault_of_ours_says_nothing(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        with no_descriptors():
            watch.prober.follow(snapshot(a.url))
            await until(lambda: len(watch.slept) == 1)
        assert (watch.found, a.connections) == ([], 0)
        watch.turn.set()
        assert await watch.finds(2) == ProbeResult()


async def test_in_a_turn_of_the_loop_one_probe_is_told_of(watch: Watch) -> None:
    """A thousand boxes that were lost together, each of which is a change, held up the loop for thirteen seconds."""
    turns, told = 0, list[int]()
    tell = watch.prober._report

    def noted(endpoint: str, result: ProbeResult) -> None:
        told.append(turns)
        tell(endpoint, result)

    watch.prober._report = noted
    watch.prober.follow(snapshot(*(f"http://127.0.0.1:1/{number}" for number in range(20))))
    for turns in range(100_000):  # noqa: B007 - the probes' reports tell it
        await asyncio.sleep(0)
        if len(told) == 20:
            break
    assert len(set(told)) == 20


async def test_what_was_found_waits_for_no_probe_that_is_to_begin(watch: Watch) -> None:
    answers = asyncio.Event()
    async with ScriptedUpstream([Pause(answers), Send(status(200, "OK"))]) as a:
        watch.prober.follow(snapshot(a.url))
        await a.arrived()
        async with watch.prober._begins:
            answers.set()
            assert await watch.finds(1) == ProbeResult()


async def test_a_report_that_fails_is_logged_and_the_endpoint_asked_again(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.fails = True
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        watch.prober.follow(snapshot(a.url))
        await watch.finds(1)
        watch.turn.set()
        await watch.finds(2)
        assert watch.found == [(a.url, ProbeResult())] * 2
        assert caplog.messages == [f"the report of a probe of {a.url} failed"] * 2


async def test_a_probe_that_fails_by_our_fault_is_logged_and_the_endpoint_asked_again(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An endpoint that such a probe was of used to be asked never more, and told nobody."""

    async def failing(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise IndexError

    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        monkeypatch.setattr(watch.upstream, "probe", failing)
        watch.prober.follow(snapshot(a.url))
        await until(lambda: watch.slept)
        assert (watch.found, caplog.messages) == ([], [f"a probe of {a.url} failed"])
        watch.turn.set()
        assert await watch.finds(2) == ProbeResult()


async def test_a_probe_lives_as_long_as_its_endpoint(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a, ScriptedUpstream([Hang()]) as b:
        watch.prober.follow(snapshot(a.url, b.url))
        await watch.finds(1)
        await b.arrived()
        tasks = dict(watch.prober._tasks)
        watch.prober.follow(snapshot(a.url))
        await b.closed_by_peer()
        assert list(watch.prober._tasks.values()) == [tasks[key] for key in tasks if key[0].identity == a.url]
        watch.prober.follow(snapshot(a.url, interval=30))
        await watch.finds(2)
        assert watch.slept == [30, 15]
        watch.prober.follow(snapshot(a.url, interval=0))
        assert watch.prober._tasks == {}
        await until(lambda: all(task.done() for task in tasks.values()))


async def test_the_same_endpoints_at_another_pace_are_probed_anew(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        first = snapshot(a.url)
        watch.prober.follow(first)
        await watch.finds(1)
        watch.prober.follow(replace(first, generation=2))
        watch.prober.follow(replace(first, settings=Settings(health_interval=30, clocks=Clocks(connect=5))))
        await watch.finds(2)
        assert watch.slept == [30, 15]


async def test_an_endpoint_that_changes_is_probed_anew(watch: Watch) -> None:
    async with ScriptedUpstream([Send(status(200, "OK"))]) as a:
        watch.prober.follow(snapshot(a.url))
        await watch.finds(1)
        watch.prober.follow(snapshot(a.url))
        watch.prober.follow(snapshot(a.url, path="/ready"))
        await watch.finds(2)
        assert [request.target for request in a.requests] == ["/health", "/ready"]
