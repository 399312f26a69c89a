"""The attempt loop.

It walks the selector's order: open the upstream, wait for the first byte worth committing to, commit, and relay. Before
the commit point a failure goes to the table in `routing.failures`; after it, the answer ends well or visibly broken.
Whatever happens, one Outcome is left and handed to the observers.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.adapters.openai_compatible import UnreplaceableModelError, replace_model
from gateway.execution.outcome import Attempt, Observer, Outcome
from gateway.execution.refusal import Refusal, read_refusal, safe_fields
from gateway.execution.relay import EVENT_STREAM, Client, ClientLeftError, Watch, relay
from gateway.execution.upstream import Answer, AttemptFailedError, Call, Upstream
from gateway.routing.failures import Cause, Failure, Verdict, status_failure, status_for_client, verdict
from gateway.routing.selector import Selector
from gateway.routing.snapshot import Deployment, Route, Snapshot

__all__ = ["CLIENT_LEFT", "Ask", "Executor", "Refusal", "Unanswered"]

CLIENT_LEFT: Final = 499
_STOPPING: Final = 503
_log: Final = logging.getLogger(__name__)
_REFUSAL_SECONDS: Final = 10.0
_SPARE_REFUSAL_SECONDS: Final = 1.0
_BODILESS: Final = frozenset({204, 205})
_BROKEN_EVENT: Final = (
    b'event: error\ndata: {"error":{"message":"the upstream broke off in mid-stream","type":"upstream_error",'
    b'"param":null,"code":"stream_broken"}}\n\n'
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asked for."""

    request_id: str
    model: str
    stream: bool
    call: Call


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No deployment answered: what to tell the client. `refusal` is an upstream's own 4xx, where there was one."""

    status: int
    tried: int
    local_fault: bool = False
    refusal: Refusal | None = None


@dataclass(slots=True)
class _Try:
    """An attempt under way: what its Attempt will say."""

    deployment: Deployment
    began: float
    status: int | None = None
    failure: str | None = None
    detail: str | None = None

    def attempt(self, now: float) -> Attempt:
        return Attempt(
            model=self.deployment.model,
            deployment=self.deployment.name,
            group=self.deployment.group,
            milliseconds=(now - self.began) * 1000,
            status=self.status,
            failure=self.failure,
            detail=self.detail,
        )


@dataclass(slots=True)
class _Record:
    """A request under way: what its Outcome will say. Filled by the executor, read once."""

    ask: Ask
    generation: int
    began: float
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    refusal: Refusal | None = None
    drawn: Deployment | None = None
    served: Deployment | None = None
    status: int = CLIENT_LEFT
    size: int = 0
    failure: str | None = None
    watch: Watch | None = None

    def ends(self, status: int, failure: str) -> None:
        self.status, self.failure = status, failure

    def outcome(self, now: float) -> Outcome:
        watch = self.watch
        content = watch.first_content if watch else None
        return Outcome(
            request_id=self.ask.request_id,
            operation=self.ask.call.operation,
            model=self.ask.model,
            served_model=self.served.model if self.served else None,
            generation=self.generation,
            stream=self.ask.stream,
            status=self.status,
            attempts=tuple(self.attempts),
            fallback=self.served is not None and self.served is not self.drawn,
            duration=(now - self.began) * 1000,
            bytes_out=watch.size if watch else self.size,
            first_content=None if content is None else (content - self.began) * 1000,
            usage=watch.usage if watch else None,
            failure=self.failure,
        )


class Executor:
    """Makes attempts.

    Mutable: `in_flight`, the attempts under way by deployment identity; and `cutting`, set when the gateway stops and
    what still runs is cut, so that no client is said to have left.
    """

    def __init__(
        self, upstream: Upstream, selector: Selector, observers: Iterable[Observer], clock: Callable[[], float]
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._upstream = upstream
        self._selector = selector
        self._observers = tuple(observers)
        self._clock = clock
        self.in_flight: Counter[tuple[str, str]] = Counter()
        self.cutting = False

    def tell(self, outcome: Outcome) -> None:
        """Hand a finished request to the observers; one that fails costs nobody an answer."""
        for observer in self._observers:
            try:
                observer(outcome)
            except Exception:  # noqa: BLE001 - an observer may raise anything
                _log.exception("an observer failed")

    async def run(self, ask: Ask, snapshot: Snapshot, route: Route, client: Client) -> Unanswered | None:
        """Get the client its answer. What comes back says why there is none; nothing has been sent then.

        Raises:
            ClientLeftError: the client went away while it was answered.
            UnreplaceableModelError: the body cannot be made to name the model as the deployment knows it.

        """
        record = _Record(ask, snapshot.generation, self._clock())
        try:
            return await self._walk(record, route, client, snapshot.settings.connect_timeout)
        except (asyncio.CancelledError, ClientLeftError):
            if self.cutting:
                record.ends(record.status if client.begun else _STOPPING, "cut")
            else:
                record.ends(CLIENT_LEFT, "client_left")
            raise
        except UnreplaceableModelError:
            record.ends(400, "invalid_request")
            raise
        except Exception:
            record.ends(record.status if client.begun else 500, "internal_error")
            raise
        finally:
            self.tell(record.outcome(self._clock()))

    async def _walk(self, record: _Record, route: Route, client: Client, connect_timeout: float) -> Unanswered | None:
        for deployment in self._selector.order(route):
            record.drawn = record.drawn or deployment
            failure = await self._attempt(record, deployment, client, connect_timeout)
            if failure is None:
                return None
            record.failures.append(failure)
            if verdict(failure) is Verdict.CLIENT:
                break
        return _unanswered(record)

    async def _attempt(
        self, record: _Record, deployment: Deployment, client: Client, connect_timeout: float
    ) -> Failure | None:
        """Try one deployment; give the failure if the next may be tried."""
        call = _call(record.ask, deployment)
        this = _Try(deployment, self._clock())
        self.in_flight[deployment.identity] += 1
        try:
            await self._answer(record, this, call, client, connect_timeout)
        except AttemptFailedError as error:
            failure = error.failure
            this.failure, this.detail = failure.cause.value, failure.detail or None
        except (asyncio.CancelledError, ClientLeftError):
            this.failure = "cut" if self.cutting else "client_left"
            raise
        except Exception:
            this.failure = "internal_error"
            raise
        else:
            return None
        finally:
            self.in_flight[deployment.identity] -= 1
            record.attempts.append(this.attempt(self._clock()))
        if not client.begun:
            return failure
        record.failure = failure.cause.value
        await client.break_off(record.watch.last_words(_BROKEN_EVENT) if record.watch else b"")
        return None

    async def _answer(self, record: _Record, this: _Try, call: Call, client: Client, connect_timeout: float) -> None:
        answer = await self._open(this, call, connect_timeout)
        this.status = answer.status
        try:
            await self._deliver(record, this.deployment, answer, client)
        finally:
            answer.close()

    async def _open(self, this: _Try, call: Call, connect_timeout: float) -> Answer:
        """Open the upstream, on a second connection if the pooled one turns out to be closed."""
        try:
            return await self._upstream.open(this.deployment, call, connect_timeout=connect_timeout)
        except AttemptFailedError as error:
            if verdict(error.failure) is not Verdict.RETRY_HERE:
                raise
        this.detail = "reconnected: the pooled connection was closed"
        return await self._upstream.open(this.deployment, call, connect_timeout=connect_timeout, fresh=True)

    async def _deliver(self, record: _Record, deployment: Deployment, answer: Answer, client: Client) -> None:
        failure = status_failure(answer.status)
        if failure is not None:
            if failure.cause is Cause.STATUS and answer.status < 500 and record.refusal is None:  # noqa: PLR2004 - 5xx
                with suppress(AttemptFailedError):
                    record.refusal = await read_refusal(answer, deployment, _SPARE_REFUSAL_SECONDS)
            raise AttemptFailedError(failure)
        if answer.status >= 400:  # noqa: PLR2004 - RFC 9110 15.5, 4xx
            refusal = await read_refusal(answer, deployment, _REFUSAL_SECONDS)
            await self._refuse(record, deployment, refusal, client)
            return
        first = await answer.chunk()
        if not first and answer.status not in _BODILESS:
            raise AttemptFailedError(Failure(Cause.BROKEN, "the answer is empty", answer.status))
        record.status, record.served = answer.status, deployment
        events = answer.content_type == EVENT_STREAM and not answer.encoded
        watch = record.watch = Watch(self._clock, events=events)
        await client.begin(answer.status, _headers(record, deployment, safe_fields(answer, deployment)), answer.length)
        await relay(answer, first, client, watch)

    async def _refuse(self, record: _Record, deployment: Deployment, refusal: Refusal, client: Client) -> None:
        record.status, record.served, record.size = refusal.status, deployment, len(refusal.body)
        await client.begin(refusal.status, _headers(record, deployment, refusal.headers), len(refusal.body))
        await client.send(refusal.body)
        await client.finish()


def _call(ask: Ask, deployment: Deployment) -> Call:
    if ask.model == deployment.served_model:
        return ask.call
    return replace(ask.call, body=replace_model(ask.call.body, deployment.served_model))


def _headers(record: _Record, deployment: Deployment, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    attempts = str(len(record.attempts) + 1)
    return [*headers, ("x-gateway-deployment", deployment.name), ("x-gateway-attempts", attempts)]


def _unanswered(record: _Record) -> Unanswered:
    failures = tuple(record.failures)
    local = bool(failures) and failures[-1].cause is Cause.LOCAL_FAULT
    refusal = None if local else record.refusal
    record.size = len(refusal.body) if refusal else 0
    record.ends(
        refusal.status if refusal else status_for_client(failures),
        failures[-1].cause.value if failures else "no_deployment",
    )
    return Unanswered(record.status, len(record.attempts), local_fault=local, refusal=refusal)
