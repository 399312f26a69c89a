"""The attempt loop.

It walks an itinerary (`routing.itinerary`): wait if it says so, open the upstream, hold back until something is worth
committing to, commit, and relay. Before the commit point a failure goes back to the itinerary, which returns the next
step. After it, a stream that breaks is carried on if it can be (`rescue`): the walk goes on, and the next deployment's
stream is joined to what the client has. Everything else ends visibly broken. The result of each attempt is reported to
the breakers. In every case, one Outcome is left and handed to the observers.

Five clocks run: `connect`, and `first_token` or `answer` (`opening`), `idle` between contents, `total` over everything.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import msgspec

from gateway.adapters.edited import asking_usage, named
from gateway.adapters.openai_compatible import UnreplaceableModelError
from gateway.execution.answer import Answer, AttemptFailedError
from gateway.execution.client import Client, ClientLeftError
from gateway.execution.completions import CompletionStream
from gateway.execution.deadline import Watch
from gateway.execution.fields import NONE, Fields
from gateway.execution.hold import Whole
from gateway.execution.opening import Opening
from gateway.execution.outcome import Observer, Outcome
from gateway.execution.record import CLIENT_LEFT, Ask, Record, Try, Unanswered
from gateway.execution.refusal import Refusal, safe_fields, words
from gateway.execution.relay import Body, Stream, relay
from gateway.execution.rescue import BrokenStream, is_refused
from gateway.execution.takeover import Rescue
from gateway.execution.trace import Trace, new_span_id
from gateway.execution.upstream import Call, Upstream
from gateway.routing.failures import TABLE, Cause, Failure, most_telling, status_for_client
from gateway.routing.itinerary import Itinerary, Step
from gateway.routing.manager import Change, RoutingManager
from gateway.routing.selector import Selector
from gateway.routing.snapshot import Deployment, Endpoint, Identity, Route, Snapshot

_STOPPING: Final = 503
_log: Final = logging.getLogger(__name__)
_OPTION: Final = b"stream_options"


class Executor:
    """Makes attempts.

    Mutable: `in_flight`, the attempts under way by deployment identity; `cutting`, set when the gateway stops and cuts
    what still runs, so that no client is reported to have left; which deployments do not know `stream_options`, and at
    which endpoint; and the clocks that run.
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
    ) -> None:
        """`clock` is monotonic, in seconds; `changed` is called when the result of an attempt changes the weights."""
        self._upstream = upstream
        self._selector = selector
        self._manager = manager
        self._observers = tuple(observers)
        self._changed = changed
        self._clock = clock
        self._dice = dice
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self.in_flight: defaultdict[Identity, int] = defaultdict(int)  # a Counter's entries are set in Python code
        self.cutting = False
        self._untold: dict[Identity, Endpoint] = {}
        self._watch: Watch | None = None

    def forget(self, deployments: Iterable[Identity]) -> None:
        """Forget what was learned about deployments that are gone, or that are something else under the same name."""
        for identity in deployments:
            self._untold.pop(identity, None)

    def tell(self, outcome: Outcome) -> None:
        """Hand a finished request to the observers; one that fails costs no client its answer."""
        for observer in self._observers:
            try:
                observer(outcome)
            except Exception:  # noqa: BLE001 - an observer may raise anything
                _log.exception("an observer failed")

    def unheard(self) -> tuple[int, str]:
        """Return the status and failure of a request whose answer nobody receives: we stop, or the client left."""
        return (_STOPPING, "cut") if self.cutting else (CLIENT_LEFT, "client_left")

    async def run(self, ask: Ask, snapshot: Snapshot, route: Route, client: Client) -> Unanswered | None:
        """Answer the client. Return why there is no answer, if there is none; nothing has been sent then.

        Raises:
            ClientLeftError: the client went away while it was being answered.
            UnreplaceableModelError: the model's name in the body cannot be replaced by the deployment's; nothing has
                been sent.

        """
        watch = self._watch
        if watch is None:
            watch = self._watch = Watch(asyncio.get_running_loop())
        record = Record(ask, snapshot, route, self._clock(), watch.deadline(), self._clock)
        self._manager.requested(route.model, record.began)
        try:
            if route.clocks.total:
                return await self._in_time(record, client)
            return await self._walk(record, client)
        except (asyncio.CancelledError, ClientLeftError):
            if client.full or not record.is_said:
                status, failure = self.unheard()
                record.ends(record.status if self.cutting and client.begun else status, failure)
            raise
        except UnreplaceableModelError:
            if record.broken is not None:
                await _break_off(record, client, record.broken.failure)
                return None
            record.ends(400, "invalid_request")
            raise
        except Exception:
            record.ends(record.status if client.begun else 500, "internal_error")
            raise
        finally:
            self.tell(record.outcome(self._clock()))

    async def _in_time(self, record: Record, client: Client) -> Unanswered | None:
        """Walk within the clock `total`."""
        seconds = record.route.clocks.total
        total = record.total = asyncio.timeout(seconds)
        try:
            async with total:
                return await self._walk(record, client)
        except TimeoutError:
            if not total.expired():
                raise
        failure = Failure(Cause.TOTAL_TIMEOUT, f"no complete answer in {seconds:g} s")
        record.failures += (failure,)
        if not client.begun:
            return self._unanswered(record)
        await _break_off(record, client, failure)
        return None

    async def _walk(self, record: Record, client: Client) -> Unanswered | None:
        manager, route, now = self._manager, record.route, record.began
        due = manager.probe_due(route, now)
        first = due or self._selector.first(route)
        itinerary: Itinerary | None = None
        if first is not None and manager.admits(first, now):
            step: Step | None = Step(first)
        else:
            itinerary = self._itinerary(record, first, due, admitted=False)
            step = itinerary.begin()
        while step is not None:
            record.starts(step)
            if record.broken is None:
                failure = await self._attempt(record, step, None, record.ask.call, client)
            else:
                failure = await self._take_over(record, record.broken, step, client)
            if failure is None:
                return None
            record.failures += (failure,)
            if itinerary is None:
                itinerary = self._itinerary(record, first, due, admitted=True)
                itinerary.begin()
            step = itinerary.after(failure) if record.may_try else None
        if record.broken is None:
            return self._unanswered(record)
        await _break_off(record, client, record.broken.failure)
        return None

    def _itinerary(
        self, record: Record, first: Deployment | None, due: Deployment | None, *, admitted: bool
    ) -> Itinerary:
        manager, clock, route = self._manager, self._clock, record.route

        return Itinerary(
            record.snapshot,
            route,
            first,
            admitted=admitted,
            due=due is not None,
            draw=self._selector.order,
            may_retry=lambda: manager.may_retry(route.model, clock()),
            dice=self._dice,
            admits=lambda deployment: manager.admits(deployment, clock()),
        )

    async def _take_over(self, record: Record, broken: BrokenStream, step: Step, client: Client) -> Failure | None:
        """Let a step's deployment take over a broken stream; return the failure if another step may follow.

        A deployment that has gone on from the text, and then broke off, has not refused it: the next one is asked.
        """
        how, call = broken.call(step.deployment)
        length = broken.length
        failure = await self._attempt(record, step, how, call, client)
        if how != "continue" or failure is None or not is_refused(failure):
            return failure
        if broken.length > length or not record.may_try:
            return failure
        again = msgspec.structs.replace(step, delay=0.0, again=step.again or TABLE[failure.cause].blames)
        return await self._attempt(record, again, "replay", record.ask.call, client)

    async def _attempt(
        self, record: Record, step: Step, how: Rescue | None, call: Call, client: Client
    ) -> Failure | None:
        """Make one step; return the failure if another one may follow."""
        deployment = step.deployment
        if record.ask.model != deployment.served_model:
            call = self._named(deployment, call)
        began, trace = self._clock(), record.ask.trace
        clocks = record.snapshot.routes[deployment.model].clocks
        this = Try(deployment, clocks, began, how, began - record.began)
        if trace is not None:
            call = _traced(this, call, trace)
        identity, in_flight = deployment.identity, self.in_flight
        in_flight[identity] += 1
        try:
            if step.delay:
                await self._sleep(step.delay)
            answer, held = await self._opened(record, this, call)
            try:
                given = self._give(record, this, answer, held, client)
                if given is not None:
                    await given
            finally:
                answer.close()
        except AttemptFailedError as error:
            failure = self._failed(record, this, error.failure, again=step.again)
        except (asyncio.CancelledError, ClientLeftError):
            self._left(record, this, client)
            raise
        except Exception:
            this.failure = "internal_error"
            self._manager.left(deployment, self._clock(), this.began)
            raise
        else:
            return None
        finally:
            in_flight[identity] -= 1
            record.attempts += (this.attempt(self._clock()),)
        if not client.begun or record.breaks(failure):
            return failure
        await _break_off(record, client, failure)
        return None

    def _named(self, deployment: Deployment, call: Call) -> Call:
        """Return the call with the model named as the deployment knows it."""
        try:
            return Call(call.operation, named(call.body, deployment.served_model), call.fields, call.request_id)
        except UnreplaceableModelError:
            self._manager.left(deployment, self._clock())
            raise

    def _failed(self, record: Record, this: Try, failure: Failure, *, again: bool) -> Failure:
        """Record why an attempt failed; return the failure with what the upstream said."""
        this.failure, this.detail = failure.cause.value, failure.detail or None
        told = self._manager.failed(
            this.deployment, failure, self._clock(), again=again, since=this.content, began=this.began
        )
        if told is not None:
            self._changed(told)
        if failure.cause is not Cause.ERROR_ANSWER or this.content is None or not isinstance(record.passing, Stream):
            return failure
        return msgspec.structs.replace(failure, said=words(record.passing.error, this.deployment))

    def _left(self, record: Record, this: Try, client: Client) -> None:
        """Record that nobody waits for the rest of an attempt's answer, if any of it is left."""
        if record.is_said and not client.full:
            self._manager.ended(this.deployment)
        else:
            this.failure = Cause.TOTAL_TIMEOUT.value if record.out_of_time else self.unheard()[1]
            self._manager.left(this.deployment, self._clock(), this.began)

    def _opened(self, record: Record, this: Try, call: Call) -> Awaitable[tuple[Answer, bytes | Whole | Refusal]]:
        if record.ask.adds_usage or this.rescue is not None:
            return self._begun(record, this, call)
        return Opening(self._upstream, record, this).begun(call)

    def _give(
        self, record: Record, this: Try, answer: Answer, held: bytes | Whole | Refusal, client: Client
    ) -> Awaitable[None] | None:
        """Send the client the result of an attempt; return what must be awaited, if anything."""
        deployment = this.deployment
        if isinstance(held, Refusal):
            self._manager.left(deployment, self._clock(), this.began)
            record.status, record.served, record.size = held.status, deployment, len(held.body)
            return client.answer(held.status, Fields(_headers(record, deployment, held.headers)), held.body)
        now = this.content = self._clock()
        is_whole = isinstance(held, Whole)
        told = self._manager.succeeded(deployment, now, whole=is_whole)
        if told is not None:
            self._changed(told)
        if isinstance(held, Whole):
            held.first_content = now
            record.status, record.served, record.passing = answer.status, deployment, held
            return client.answer(answer.status, _fields(record, deployment, answer), held.body)
        return self._deliver(record, this, answer, held, client)

    async def _begun(self, record: Record, this: Try, call: Call) -> tuple[Answer, bytes | Whole | Refusal]:
        """Open the upstream; if it does not know `stream_options`, which we add, ask without it, from then on.

        An upstream that refuses the request even so may only have quoted it (vLLM does): nothing is learned from that.
        """
        deployment = this.deployment
        added = record.ask.adds_usage and self._untold.get(deployment.identity) != deployment.endpoint
        asked = Call(call.operation, asking_usage(call.body), call.fields, call.request_id) if added else call
        answer, held = await Opening(self._upstream, record, this).begun(asked)
        if added and isinstance(held, Refusal) and _OPTION in held.body:
            answer.close()
            this.detail = "asked again without stream_options"
            answer, held = await Opening(self._upstream, record, this).begun(call)
            if not isinstance(held, Refusal):
                self._untold[deployment.identity] = deployment.endpoint
        if this.rescue is not None and (isinstance(held, Refusal) or not answer.facts.has_events):
            answer.close()
            raise AttemptFailedError(Failure(Cause.RESCUE_REFUSED, f"status {answer.status}", answer.status))
        return answer, held

    async def _deliver(self, record: Record, this: Try, answer: Answer, first: bytes, client: Client) -> None:
        deployment = this.deployment
        if this.rescue is None:
            passing = record.passing
            if not isinstance(passing, Stream):
                passing = record.passing = Body(self._clock, is_object=answer.facts.is_json, length=answer.length)
            record.status, record.served = answer.status, deployment
            await client.begin(
                answer.status, _fields(record, deployment, answer), None if answer.facts.has_events else answer.length
            )
        else:
            passing = record.passing
            assert isinstance(passing, CompletionStream)  # noqa: S101 - nothing else is rescued
            passing.taken_over(this.rescue)
        is_fed = this.rescue is None and isinstance(passing, Stream)
        try:
            await relay(answer, first, client, passing, this.clocks.idle, record.deadline, is_fed=is_fed)
        except asyncio.CancelledError:
            if client.full or this.rescue is not None or not record.came_in_time:
                raise
            await client.send(passing.end())
        record.served = deployment
        await client.finish(_trailer(record, this))
        self._manager.ended(deployment)

    def _unanswered(self, record: Record) -> Unanswered:
        """Choose the client's error: that of the most telling failure, in the upstream's own words if it is a 4xx."""
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
            retry_after=self._manager.retry_after(record.route, self._clock()),
            said=failure.said if failure else "",
        )


_PASSED_ON: Final = frozenset(
    {Cause.CONTEXT_LENGTH, Cause.RATE_LIMITED, Cause.SEND_AGAIN, Cause.MODEL_MISSING, Cause.NOT_SERVED}
)


def _traced(this: Try, call: Call, trace: Trace) -> Call:
    """Return the call with header fields that name the attempt's span in a trace to the upstream."""
    span_id = this.span_id = new_span_id()
    fields = Fields([*call.fields.pairs, *trace.fields(span_id).items()])
    return msgspec.structs.replace(call, fields=fields)


async def _break_off(record: Record, client: Client, failure: Failure) -> None:
    record.failure = failure.cause.value
    await client.break_off(record.passing.last_words(_broken(failure)) if record.passing else b"")


def _broken(failure: Failure) -> Mapping[str, object]:
    """Return the error that says that a stream broke."""
    message = "the upstream broke off in mid-stream" + (f": {failure.said}" if failure.said else "")
    return {"message": message, "type": "upstream_error", "param": None, "code": "stream_broken"}


def _fields(record: Record, deployment: Deployment, answer: Answer) -> Fields:
    facts, is_first = answer.facts, not record.attempts
    told = facts.told
    if told is not None and is_first and told[0] is deployment:
        return told[1]
    fields = Fields(_headers(record, deployment, safe_fields(answer, deployment)))
    if is_first:
        facts.told = deployment, fields
    return fields


def _headers(record: Record, deployment: Deployment, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    attempts = str(len(record.attempts) + 1)
    return [*headers, ("x-gateway-deployment", deployment.name), ("x-gateway-attempts", attempts)]


def _trailer(record: Record, this: Try) -> Fields:
    if this.rescue is None:
        return NONE
    return Fields([("x-gateway-rescue", this.rescue), *_headers(record, this.deployment, [])])
