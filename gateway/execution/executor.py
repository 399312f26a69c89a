"""The attempt loop.

It walks an itinerary (`routing.itinerary`): wait if it says so, open the upstream, hold back until something is worth
committing to, commit, and relay. Before the commit point a failure goes back to the itinerary, which says what is next;
after it, the answer ends well or visibly broken. What each attempt came to is told to the breakers. Whatever happens,
one Outcome is left and handed to the observers.

Four clocks run: `connect` until a connection is there, `first_token` from the request's last byte to the first content,
`idle` between contents, `total` over everything.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from gateway.adapters.openai_compatible import UnreplaceableModelError, replace_model
from gateway.execution.hold import hold
from gateway.execution.outcome import Observer, Outcome
from gateway.execution.record import CLIENT_LEFT, Ask, Record, Try, Unanswered
from gateway.execution.refusal import Refusal, read_refusal, retry_after, safe_fields
from gateway.execution.relay import EVENT_STREAM, Client, ClientLeftError, Watch, relay
from gateway.execution.upstream import Answer, AttemptFailedError, Call, Upstream
from gateway.routing.failures import (
    Cause,
    Failure,
    Verdict,
    most_telling,
    status_failure,
    status_for_client,
    verdict,
)
from gateway.routing.itinerary import Step, tiers_of, walk
from gateway.routing.manager import Change, RoutingManager
from gateway.routing.selector import Selector
from gateway.routing.snapshot import Deployment, Route, Snapshot

__all__ = ["CLIENT_LEFT", "Ask", "Executor", "Refusal", "Unanswered"]

_STOPPING: Final = 503
_log: Final = logging.getLogger(__name__)
_REFUSAL_SECONDS: Final = 10.0
_SPARE_REFUSAL_SECONDS: Final = 1.0
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_BROKEN_EVENT: Final = (
    b'event: error\ndata: {"error":{"message":"the upstream broke off in mid-stream","type":"upstream_error",'
    b'"param":null,"code":"stream_broken"}}\n\n'
)


class Executor:
    """Makes attempts.

    Mutable: `in_flight`, the attempts under way by deployment identity; and `cutting`, set when the gateway stops and
    what still runs is cut, so that no client is said to have left.
    """

    def __init__(
        self,
        *,
        upstream: Upstream,
        selector: Selector,
        manager: RoutingManager,
        observers: Iterable[Observer],
        changed: Callable[[Change], None],
        clock: Callable[[], float],
        dice: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` is monotonic, in seconds; `changed` is told when what attempts met changed the weights."""
        self._upstream = upstream
        self._selector = selector
        self._manager = manager
        self._observers = tuple(observers)
        self._changed = changed
        self._clock = clock
        self._dice = dice
        self._sleep = sleep
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
        record = Record(ask, snapshot, self._clock(), route.clocks, route.model)
        self._manager.requested(route.model, record.began)
        try:
            return await self._in_time(record, snapshot, route, client)
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

    async def _in_time(self, record: Record, snapshot: Snapshot, route: Route, client: Client) -> Unanswered | None:
        """Walk within the clock `total`."""
        total = record.total = asyncio.timeout(record.clocks.total or None)
        try:
            async with total:
                return await self._walk(record, snapshot, route, client)
        except TimeoutError:
            if not total.expired():
                raise
        failure = Failure(Cause.TOTAL_TIMEOUT, f"no whole answer in {record.clocks.total:g} s")
        record.failures.append(failure)
        if not client.begun:
            return self._unanswered(record, route)
        await _break_off(record, client, failure)
        return None

    async def _walk(self, record: Record, snapshot: Snapshot, route: Route, client: Client) -> Unanswered | None:
        manager, clock = self._manager, self._clock
        tiers = tiers_of(snapshot, route, self._selector.order, manager.probe_due(route, clock()))
        steps = walk(
            tiers,
            snapshot.settings.bounds,
            may_retry=lambda: manager.may_retry(route.model, clock()),
            dice=self._dice,
            admits=lambda deployment: manager.admits(deployment, clock()),
        )
        step = next(steps, None)
        while step is not None:
            record.starts(step)
            failure = await self._attempt(record, step, client)
            if failure is None:
                return None
            record.failures.append(failure)
            try:
                step = steps.send(failure)
            except StopIteration:
                break
        return self._unanswered(record, route)

    async def _attempt(self, record: Record, step: Step, client: Client) -> Failure | None:
        """Make one step; give the failure if a further one may be made."""
        deployment = step.deployment
        call = self._call(record.ask, deployment)
        this = Try(step, record.snapshot.routes[deployment.model].clocks, self._clock())
        self.in_flight[deployment.identity] += 1
        try:
            if step.delay:
                await self._sleep(step.delay)
            await self._answer(record, this, call, client)
        except AttemptFailedError as error:
            failure = error.failure
            this.failure, this.detail = failure.cause.value, failure.detail or None
            self._note(self._manager.failed(deployment, failure, self._clock(), again=step.again))
        except (asyncio.CancelledError, ClientLeftError):
            this.failure = self._why_ended(record)
            self._manager.left(deployment, self._clock())
            raise
        except Exception:
            this.failure = "internal_error"
            self._manager.left(deployment, self._clock())
            raise
        else:
            return None
        finally:
            self.in_flight[deployment.identity] -= 1
            record.attempts.append(this.attempt(self._clock()))
        if not client.begun:
            return failure
        await _break_off(record, client, failure)
        return None

    def _call(self, ask: Ask, deployment: Deployment) -> Call:
        try:
            return _call(ask, deployment)
        except UnreplaceableModelError:
            self._manager.left(deployment, self._clock())
            raise

    def _why_ended(self, record: Record) -> str:
        if record.out_of_time:
            return Cause.TOTAL_TIMEOUT.value
        return "cut" if self.cutting else "client_left"

    def _note(self, change: Change | None) -> None:
        if change is not None:
            self._changed(change)

    async def _answer(self, record: Record, this: Try, call: Call, client: Client) -> None:
        answer: Answer | None = None
        loop = asyncio.get_running_loop()
        clocks = this.clocks
        clock = asyncio.timeout(None)
        failure = Failure(Cause.FIRST_TOKEN_TIMEOUT, f"no content in {clocks.first_token:g} s")

        def runs(seconds: float) -> None:
            with suppress(RuntimeError):  # the request may still be on its way when the clock has stopped
                clock.reschedule(loop.time() + seconds if seconds else None)

        def came() -> None:
            nonlocal failure
            failure = Failure(Cause.STALLED, f"nothing more of the body for {clocks.idle:g} s")
            runs(clocks.idle)

        try:
            async with clock:
                answer = await self._open(this, call, clocks.connect, lambda: runs(clocks.first_token))
                this.status = answer.status
                held = await self._held(record, this.deployment, answer, came)
            if isinstance(held, Refusal):
                self._manager.left(this.deployment, self._clock())
                await _refuse(record, this.deployment, held, client)
            else:
                self._note(self._manager.succeeded(this.deployment, self._clock()))
                await self._deliver(record, this, answer, held, client)
        except TimeoutError:
            if not clock.expired() or client.begun:
                raise
            raise AttemptFailedError(failure) from None
        finally:
            if answer is not None:
                answer.close()

    async def _open(self, this: Try, call: Call, connect: float, sent: Callable[[], None]) -> Answer:
        """Open the upstream, on a second connection if the pooled one turns out to be closed."""
        try:
            return await self._upstream.open(this.deployment, call, connect_timeout=connect, sent=sent)
        except AttemptFailedError as error:
            if verdict(error.failure) is not Verdict.RETRY_HERE:
                raise
        this.detail = "reconnected: the pooled connection was closed"
        return await self._upstream.open(this.deployment, call, connect_timeout=connect, fresh=True, sent=sent)

    async def _held(
        self, record: Record, deployment: Deployment, answer: Answer, came: Callable[[], None]
    ) -> bytes | Refusal:
        """Give what is worth committing to: an answer's beginning, or a refusal that is the client's."""
        if answer.status < _CLIENT_ERROR:
            failure = status_failure(answer.status)
            if failure is not None:
                raise AttemptFailedError(failure)
            return await hold(answer, came)
        refusal: Refusal | None = None
        spare = status_failure(answer.status) is not None
        try:
            refusal = await read_refusal(answer, deployment, _SPARE_REFUSAL_SECONDS if spare else _REFUSAL_SECONDS)
        except AttemptFailedError:
            if not spare:
                raise
        failure = status_failure(answer.status, refusal.body if refusal else b"", retry_after(answer.headers))
        if failure is None and refusal is not None:
            return refusal
        failure = failure or Failure(Cause.CUT_ANSWER, "the error broke off", answer.status)
        if refusal is not None and answer.status < _SERVER_ERROR:
            record.refusals.setdefault(failure.cause, refusal)
        raise AttemptFailedError(failure)

    async def _deliver(self, record: Record, this: Try, answer: Answer, first: bytes, client: Client) -> None:
        deployment = this.deployment
        record.status, record.served = answer.status, deployment
        events = answer.content_type == EVENT_STREAM and not answer.encoded
        watch = record.watch = Watch(self._clock, events=events)
        fields = _headers(record, deployment, safe_fields(answer, deployment))
        await client.begin(answer.status, fields, None if events else answer.length)
        await relay(answer, first, client, watch, this.clocks.idle)

    def _unanswered(self, record: Record, route: Route) -> Unanswered:
        """Choose what the client is told: the most telling failure, and the upstream's own words where it is a 4xx."""
        failure = most_telling(record.failures)
        refusal = record.refusals.get(failure.cause) if failure and failure.cause in _PASSED_ON else None
        status = 503 if record.all_out and refusal is None else status_for_client(failure)
        record.size = len(refusal.body) if refusal else 0
        record.ends(refusal.status if refusal else status, failure.cause.value if failure else "no_deployment")
        return Unanswered(
            record.status,
            len(record.attempts),
            local_fault=failure is not None and failure.cause is Cause.LOCAL_FAULT,
            refusal=refusal,
            retry_after=self._manager.retry_after(route, self._clock()),
        )


_PASSED_ON: Final = frozenset(
    {Cause.CONTEXT_LENGTH, Cause.RATE_LIMITED, Cause.SEND_AGAIN, Cause.MODEL_MISSING, Cause.NOT_SERVED}
)


async def _refuse(record: Record, deployment: Deployment, refusal: Refusal, client: Client) -> None:
    record.status, record.served, record.size = refusal.status, deployment, len(refusal.body)
    await client.begin(refusal.status, _headers(record, deployment, refusal.headers), len(refusal.body))
    await client.send(refusal.body)
    await client.finish()


async def _break_off(record: Record, client: Client, failure: Failure) -> None:
    record.failure = failure.cause.value
    await client.break_off(record.watch.last_words(_BROKEN_EVENT) if record.watch else b"")


def _call(ask: Ask, deployment: Deployment) -> Call:
    if ask.model == deployment.served_model:
        return ask.call
    return replace(ask.call, body=replace_model(ask.call.body, deployment.served_model))


def _headers(record: Record, deployment: Deployment, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    attempts = str(len(record.attempts) + 1)
    return [*headers, ("x-gateway-deployment", deployment.name), ("x-gateway-attempts", attempts)]
