"""The aiohttp application, and the one place that wires the rest.

`create_app` is public: use it to embed the gateway in another aiohttp program, or to test against it.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from gateway import __version__
from gateway.api.admin import Admin
from gateway.api.body import Limits
from gateway.api.context import Handler, Stamp, errors
from gateway.api.cors import Cors
from gateway.api.events import Events
from gateway.api.metrics import Scrape
from gateway.api.openai import OpenAI
from gateway.api.page import Page
from gateway.api.plan import plan_routes
from gateway.api.stats import Stats
from gateway.changes import Changes
from gateway.config.environment import Interpolated
from gateway.config.faults import ConfigError, Fault
from gateway.config.load import parse
from gateway.config.shown import dotted
from gateway.config.sources import ConfigFiles, Sources
from gateway.execution.executor import Executor
from gateway.execution.outbox import Outbox
from gateway.execution.upstream import Transport, Upstream
from gateway.heap import building
from gateway.observe.board import Board
from gateway.observe.cost import Costs
from gateway.observe.feed import Feed
from gateway.observe.ledger.places import check
from gateway.observe.ledger.writer import Ledger
from gateway.observe.live import Live
from gateway.observe.log import RequestLog, capture_stdlib, make_logger, set_level
from gateway.observe.metrics.observer import Metrics
from gateway.observe.metrics.state import State
from gateway.observe.models import Models
from gateway.observe.reloads import ReloadState
from gateway.observe.sink import LogSink
from gateway.observe.tracing import Tracing
from gateway.observe.traffic import Traffic
from gateway.reload import Reloader
from gateway.routing.manager import RoutingManager
from gateway.routing.plan import Plan, plan
from gateway.routing.selector import Selector
from gateway.routing.succession import Succession

LONGEST_LINE: Final = 8 << 10
"""The longest request line, in bytes (RFC 9112 3): aiohttp looks up every prefix of its path in the routes."""
LONGEST_FIELD: Final = 32 << 10
"""The longest header field, in bytes: browsers send the cookies of everything on the same host."""
HANDLER_ARGS: Final[Mapping[str, object]] = {
    "handler_cancellation": True,
    "auto_decompress": False,
    "access_log": None,
    "lingering_time": 5.0,
    "max_line_size": LONGEST_LINE,
    "max_field_size": LONGEST_FIELD,
}
_QUIET_SECONDS: Final = 5.0
_SLICE: Final = 50
_FLUSH_SECONDS: Final = 2.0
_LEDGER_SECONDS: Final = 5.0
_SET: Final = 1.0
"""A jump of the wall clock by more than this many seconds means that it was set."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides. `environ` is what `${VAR}` in the files may name; its values appear in no repr.

    `transport` is how requests pass through: `direct` takes the fast paths through aiohttp (`fast_path`,
    `execution.direct`). `cors_origins` are those whose pages may send requests from a browser (`api.cors`).
    `keep_alive` is how many seconds an idle client connection is kept; with 0, each closes after its answer.
    """

    config_dir: Path = Path("config")
    env_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    log_output: str = "stderr"
    transport: Transport = "direct"
    cors_origins: frozenset[str] = frozenset()
    keep_alive: float = 75.0
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


def build(
    sources: Sources, files: ConfigFiles, environ: Mapping[str, str], check_output: Callable[[str], None]
) -> Plan:
    """Make a plan of what was read, and check everything that can be checked without serving. Blocking.

    `check_output` raises OSError for a log output that cannot be written.

    Raises:
        ConfigError: with every fault of both files.

    """
    loaded = parse(sources, files, environ)
    built = plan(loaded, sources.digest)
    try:
        check_output(built.settings.log_output)
    except OSError as error:
        at = ("logging", "output")
        written, reason = loaded.at("routing", at), str(error)
        if isinstance(written, Interpolated):
            reason = reason.replace(written, written.source)
        raise ConfigError((loaded.fault("routing", at, f"cannot log there: {reason}"),)) from error
    if built.settings.ledger.place is not None:
        try:
            check(built.settings.ledger.place)
        except ValueError as error:
            raise ConfigError((loaded.fault("routing", ("ledger", "url"), str(error)),)) from error
    loaded.let_go()
    return built


@dataclass(frozen=True, slots=True)
class _Built:
    """A plan as the successor of the one in force, and the texts that the log must not show."""

    succession: Succession
    secrets: frozenset[str] = field(repr=False)


class Gateway:
    """The running gateway.

    Mutable: the manager's snapshot, `state` and `draining`, and two counts of requests: `others`, which the `outbox`
    does not count, and those `cut` in order to stop. `urls` are where it listens, if known. `tidy` is called in the
    reloader's thread when a configuration is built, and with `idle` once no request has come for a while after that; a
    gateway with a process of its own sets it to `heap.settle`.
    """

    def __init__(self, options: Options) -> None:
        """Wire everything, without running it yet."""
        self.options = options
        self.files = ConfigFiles.of(options.config_dir, options.environ, options.env_file)
        self.sink = LogSink(options.log_output)
        self.log = make_logger(self.sink, "info")
        self.manager = RoutingManager(_Epoch(time.time, time.monotonic))
        self.feed = Feed()
        settle = self.feed.settle
        self.traffic = Traffic(settle)
        self.costs = Costs(settle)
        self.ledger = Ledger(self.log, settle=settle)
        self.metrics = Metrics(time.monotonic, settle)
        self.tracing = Tracing.of(os.environ)
        self.sink.set_secrets(self.tracing.secrets)
        self.live = Live(settle=settle)
        self.request_log = RequestLog(self.log)
        takers = (self.request_log, self.traffic, self.live, self.costs, self.ledger, self.metrics)
        self.feed.takers = tuple(each.take for each in takers)
        self.state = ReloadState()
        self.draining = False
        self.others = 0
        self.cut = 0
        self.urls: tuple[str, ...] = ()
        self.tidy: Callable[..., None] = _leave
        self.selector = Selector(random.random)
        self.outbox = Outbox()
        self.upstream = Upstream(transport=options.transport, outbox=self.outbox)
        self.changes = Changes(
            manager=self.manager,
            selector=self.selector,
            upstream=self.upstream,
            log=self.log,
            probed=self.metrics.probed,
            settle=settle,
        )
        self.executor = Executor(
            upstream=self.upstream,
            selector=self.selector,
            manager=self.manager,
            observers=(self.feed.put, *self.tracing.observers),
            changed=self.changes.follow,
            clock=time.monotonic,
            dice=random.random,
        )
        self.openai = OpenAI(self.executor, self.manager, options.limits, self.tracing.sampling, options.cors_origins)
        self.models = Models(self.manager, self.traffic, self.executor.in_flight)
        self.events = Events(
            Board(
                manager=self.manager,
                models=self.models,
                live=self.live,
                in_flight=self.executor.in_flight,
                reloads=self.state.as_dict,
                money=self.costs.money,
            )
        )
        self.reloader: Reloader[_Built] = Reloader(
            self.files, build=self._build, adopt=self._adopt, reject=self._reject, notice=self._notice
        )
        self._following: asyncio.Task[None] | None = None
        self._release_stdlib: Callable[[], None] | None = None
        self._tidying: asyncio.Task[None] | None = None

    @property
    def active(self) -> int:
        """How many requests are being answered."""
        return self.outbox.requests + self.others

    async def start(self) -> None:
        """Read the configuration, follow it, probe, and log."""
        self._release_stdlib = capture_stdlib(self.log)
        try:
            await self.reloader.load()
        except BaseException:
            self._release_stdlib()  # `close` is not called if `start` fails
            raise
        self.sink.start()
        self.metrics.lag.start()
        self.tracing.start(self.log)
        if self.upstream.transport != self.options.transport:
            self.log.warning("transport.untested", aiohttp=aiohttp.__version__, transport=self.upstream.transport)
        snapshot = self.manager.snapshot
        self.log.info(
            "gateway.started",
            version=__version__,
            generation=self.manager.generation,
            models=len(snapshot.models) if snapshot else 0,
            deployments=len(snapshot.deployments) if snapshot else 0,
            config=str(self.options.config_dir),
            **({"urls": self.urls} if self.urls else {}),
        )
        self._following = asyncio.create_task(self.reloader.run(), name="reload")

    def drain(self) -> None:
        """Begin to stop: readiness turns 503, and the event streams of viewers end."""
        self.draining = True
        self.events.close()

    async def close(self) -> None:
        """Stop following and probing, close every upstream connection, and flush the log."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.changes.close()
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        self.metrics.lag.stop()
        await self.upstream.close()
        await self.tracing.close(_FLUSH_SECONDS)
        self.feed.settle()
        await asyncio.to_thread(self.ledger.close, _LEDGER_SECONDS)
        self.log.info("gateway.stopped", cut=self.cut)
        if self._release_stdlib is not None:
            self._release_stdlib()
        await asyncio.to_thread(self.sink.close, _FLUSH_SECONDS)

    def _build(self, sources: Sources) -> _Built:
        """Build, in the reloader's thread, and work out beforehand what would block the loop in `_adopt`."""
        with building():
            try:
                made = build(sources, self.files, self.options.environ, self.sink.check)
                self._check_clients(made)
                return self._prepared(made)
            finally:
                self.tidy(idle=False)

    def _check_clients(self, made: Plan) -> None:
        """Refuse to let everybody in because routing.yaml is gone, which may be a mistake.

        Raises:
            ConfigError: it is gone, and the one in force says who may ask.

        """
        snapshot = self.manager.snapshot
        if snapshot is not None and snapshot.settings.clients is not None and not made.settings.split:
            told = "not found, and it said who may ask: to let everybody in, save one without `clients`"
            raise ConfigError((Fault.whole(self.files.routing, told),))

    def _prepared(self, made: Plan) -> _Built:
        succession = self.manager.succession(made)
        made = succession.new
        if succession.changes is not None:
            succession.changes.as_dict()
            self.costs.prepare(made.catalogue)
            self.metrics.prepare(made.catalogue)
        place, deployments = made.settings.ledger.place, made.catalogue.deployments.values()
        keys = frozenset(each.key.get_secret_value() for each in deployments if each.key)
        secrets = keys | (place.secrets() if place else frozenset())
        self.sink.prepare_secrets(secrets)
        return _Built(succession, secrets)

    def _adopt(self, ready: _Built) -> None:
        built, before = ready.succession.new, self.manager.snapshot
        changes = self.manager.adopt(ready.succession)
        snapshot = self.manager.snapshot
        assert snapshot is not None  # noqa: S101 - it was adopted
        told = changes.as_dict() if changes and self._following else None
        mended = self.state.rejected is not None
        known = {(notice.file, notice.path, notice.message) for notice in self.state.notices}
        self.state.accept(time.time(), snapshot.generation, snapshot.digest, built.notices, told)
        if changes is None:
            if mended:
                self.log.info("config.unchanged", generation=snapshot.generation, hash=snapshot.digest)
            self._warn(each for each in built.notices if (each.file, each.path, each.message) not in known)
            self._go_on_tidying()
            return
        self.feed.settle()  # requests that have ended count for the old configuration
        self.executor.forget(ready.succession.others)
        self.changes.adopt(snapshot)
        self.traffic.rebase()
        self.live.rebase(snapshot.generation)
        self.costs.adopt(snapshot)
        self.metrics.adopted(snapshot)
        self.tracing.adopt(snapshot)
        settings = snapshot.settings
        self.sink.set_secrets(ready.secrets)
        if settings.log_output != self.sink.target:
            self.sink.retarget(settings.log_output)
        set_level(self.log, settings.log_level)
        self.ledger.move(settings.ledger)
        if told is not None:
            self.log.info("config.reloaded", generation=snapshot.generation, hash=snapshot.digest, **told)
        self._warn((*built.notices, *self._unweighed()))
        if before is not None and before.settings.clients is not None and settings.clients is None:
            open_now = "removed: anyone who reaches the port can use the models now"
            self._warn([Fault(str(self.files.routing), 0, 0, "clients", open_now)])
        self._restart_tidying(ready.succession.old)

    def _warn(self, notices: Iterable[Fault]) -> None:
        for notice in notices:
            self.log.warning("config.warning", **notice.as_dict())

    def _unweighed(self) -> Iterator[Fault]:
        """Yield what the strategy failed for in the state in which the plan was put in force."""
        for path, message in self.manager.problems:
            told = f"{message}; until health changes, that model's weights are those with everything up"
            yield Fault(str(self.files.routing), 0, 0, dotted(path), told)

    def _reject(self, error: ConfigError) -> None:
        self.feed.settle()
        if self.state.reject(time.time(), self.manager.generation, error.faults):
            self.metrics.rejected()
        self.log.error(
            "config.rejected",
            generation=self.manager.generation,
            faults=[fault.as_dict() for fault in error.faults],
        )
        self._go_on_tidying()

    def _notice(self, event: str, fields: Mapping[str, object]) -> None:
        self.log.warning(event, **fields)

    def _restart_tidying(self, old: Plan | None) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        self._tidying = asyncio.create_task(self._tidied(old.parts() if old else []), name="tidy")

    def _go_on_tidying(self) -> None:
        """Tidy after a build that changed nothing, too: it hid objects from the collector like any other."""
        if self._tidying is None or self._tidying.done():
            self._restart_tidying(None)

    async def _tidied(self, old: list[object]) -> None:
        """Free the objects of the old plan in slices, and collect garbage once no request has come for a while.

        Freeing 4,000 deployments blocks the loop for 7 ms; collecting garbage among as many, for a tenth of a second.
        Viewers of the page do not count as requests.
        """
        while old:
            del old[-_SLICE:]
            await asyncio.sleep(0)
        seen = None
        while self.active > self.events.viewers or self.live.number != seen:
            seen = self.live.number
            await asyncio.sleep(_QUIET_SECONDS)
        self.tidy(idle=True)


class _Epoch:
    """Returns the offset from monotonic time to seconds since the epoch.

    It stays the same until the machine's clock is set, so that one time is always shown as the same. Mutable: the
    offset.
    """

    def __init__(self, wall: Callable[[], float], clock: Callable[[], float]) -> None:
        """`wall` is in seconds since the epoch, `clock` monotonic."""
        self._wall, self._clock = wall, clock
        self._told = wall() - clock()

    def __call__(self) -> float:
        """Return the offset."""
        now = self._wall() - self._clock()
        if abs(now - self._told) > _SET:
            self._told = now
        return self._told


def _leave(*, idle: bool) -> None:
    """Do nothing: the memory of a program that embeds the gateway is not ours."""


GATEWAY: Final = web.AppKey("GATEWAY", Gateway)


def create_app(options: Options | None = None) -> web.Application:
    """Make the gateway's application; its start-up reads the configuration, its clean-up flushes the log.

    A configuration that is bad at the start does not stop it: it serves errors, says so on `/health/ready`, and adopts
    the first good one. Raises nothing.
    """
    gateway = Gateway(options or Options())

    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        gateway.others += 1
        try:
            return await handler(request)
        finally:
            gateway.others -= 1

    app = web.Application(
        middlewares=[counted, errors],
        client_max_size=gateway.options.limits.body,
        handler_args={**HANDLER_ARGS, "keepalive_timeout": gateway.options.keep_alive},
    )
    app[GATEWAY] = gateway
    if gateway.options.cors_origins:
        cors = Cors(gateway.options.cors_origins)
        app.middlewares.append(cors.preflights)
        app.on_response_prepare.append(cors.stamp)
    page = Page()
    app.add_routes([*_routes(gateway), *page.routes()])
    keeps_none = not gateway.options.keep_alive
    app.on_response_prepare.append(Stamp(lambda: gateway.manager.snapshot, lambda: keeps_none or gateway.draining))

    async def running(_: web.Application) -> AsyncIterator[None]:
        await page.load()
        await gateway.start()
        yield
        await gateway.close()

    async def drained(_: web.Application) -> None:
        gateway.drain()

    app.cleanup_ctx.append(running)
    app.on_shutdown.append(drained)
    return app


def _routes(gateway: Gateway) -> list[web.AbstractRouteDef]:
    """Return a gateway's routes: the API, and the pages about the gateway itself."""
    admin = Admin(
        manager=gateway.manager,
        models=gateway.models,
        reloads=gateway.state.as_dict,
        draining=lambda: gateway.draining,
        log_dropped=lambda: gateway.sink.dropped,
        ledger=gateway.ledger.as_dict,
    )
    scrape = Scrape(
        gateway.metrics,
        State(
            manager=gateway.manager,
            traffic=gateway.traffic,
            reloads=gateway.state,
            in_flight=gateway.executor.in_flight,
            log_dropped=lambda: gateway.sink.dropped,
            ledger_waiting=lambda: gateway.ledger.waiting,
            ledger_dropped=lambda: gateway.ledger.dropped,
            connections=lambda: gateway.upstream.connections,
            costs=lambda: gateway.costs.totals,
        ),
    )
    recent = Stats(gateway.ledger, lambda: gateway.manager.snapshot)
    told = (admin, scrape, recent, gateway.events)
    routes = [*gateway.openai.routes(), *plan_routes(gateway.manager)]
    return [*routes, *(route for each in told for route in each.routes())]
