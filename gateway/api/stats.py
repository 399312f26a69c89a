"""`GET /stats`: what the ledger holds about the last hours, by model, by deployment and by client."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final

import msgspec
from aiohttp import web
from multidict import MultiMapping

from gateway.api.errors import RequestError
from gateway.config.faults import nearest
from gateway.config.ledger_place import Place
from gateway.observe.ledger.places import reader_at
from gateway.observe.ledger.stats import Answer, Question, stats
from gateway.observe.ledger.store import Reader, UnavailableError
from gateway.observe.ledger.writer import Ledger
from gateway.routing.snapshot import Snapshot
from gateway.threads import DaemonThreads

_SECONDS: Final = 30.0
_FLUSH_SECONDS: Final = 1.0
_MOST_HOURS: Final = 24.0 * 366 * 10
_PARAMETERS: Final = ("hours", "model", "deployment", "client")
_HOURS: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?")
_LONGEST: Final = 256
_OFF: Final = "there is no ledger: add `ledger: {url: sqlite:///ledger.db}` to routing.yaml (docs/ledger.md)"


class Stats:
    """The handler of `/stats`. One question is answered at a time, in a thread that shutdown does not wait for."""

    def __init__(
        self,
        ledger: Ledger,
        current: Callable[[], Snapshot | None],
        open_reader: Callable[[Place, float], AbstractContextManager[Reader]] = reader_at,
    ) -> None:
        """Query this ledger; `current` returns the snapshot in force, which knows aliases."""
        self._ledger = ledger
        self._current = current
        self._open_reader = open_reader
        self._one = asyncio.Lock()
        self._threads = DaemonThreads("stats")

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to register."""
        return [web.get("/stats", self.stats)]

    async def stats(self, request: web.Request) -> web.Response:
        """Report on the last hours.

        Raises:
            RequestError: 400 for a bad parameter, 503 when there is no ledger, or when it cannot be read in time.

        """
        question = self._question(request.query)
        place = self._ledger.place
        if place is None:
            raise RequestError(503, _OFF, code="no_ledger")
        try:
            await self._one.acquire()
            answer = await asyncio.shield(asyncio.ensure_future(self._asked(place, question)))
        except UnavailableError as error:
            raise RequestError(503, f"the ledger cannot be read: {error}", code="ledger_unavailable") from error
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _asked(self, place: Place, question: Question) -> Answer:
        """Answer in a thread, then release the lock; never cancelled: the thread goes on when its client leaves."""
        try:
            self._ledger.settle()
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, place, question)
        finally:
            self._one.release()

    def _answer(self, place: Place, question: Question) -> Answer:
        """Query the ledger, once waiting rows are written. Blocking."""
        self._ledger.flush(_FLUSH_SECONDS)
        with self._open_reader(place, _SECONDS) as reader:
            answer = stats(reader, question, time.time())
        return answer | {"ledger": {"waiting": self._ledger.waiting, "dropped": self._ledger.dropped}}

    def _question(self, query: MultiMapping[str]) -> Question:
        for name in query:
            if name not in _PARAMETERS:
                expected = nearest(name, _PARAMETERS) or f", expected one of {', '.join(_PARAMETERS)}"
                raise _bad(name[:_LONGEST], f"unknown parameter{expected}")
            if len(query.getall(name)) > 1:
                raise _bad(name, "given more than once, expected once")
        model = _name(query, "model")
        snapshot = self._current()
        route = snapshot.routes.get(model) if snapshot is not None and model is not None else None
        return Question(
            _hours(query.get("hours", "24")),
            route.model if route else model,
            _name(query, "deployment"),
            _name(query, "client"),
        )


def _hours(text: str) -> float:
    hours = float(text) if _HOURS.fullmatch(text) else 0.0
    if not 0 < hours <= _MOST_HOURS:
        raise _bad("hours", f"found {text[:_LONGEST]!r}, expected a number above 0 and at most {_MOST_HOURS:.0f}")
    return hours


def _name(query: Mapping[str, str], parameter: str) -> str | None:
    """Read a name; an empty one counts as absent."""
    text = query.get(parameter) or None
    if text is not None and (len(text) > _LONGEST or not text.isprintable()):
        raise _bad(parameter, f"expected at most {_LONGEST} printable characters")
    return text


def _bad(parameter: str, told: str) -> RequestError:
    return RequestError(400, f"{parameter}: {told}", code="invalid_parameter", param=parameter)
