"""An attempt up to the commit point: open the upstream, and hold back until something is worth committing to.

Two clocks run here: `connect` until there is a connection, and from the request's last byte to the first content
`first_token`, or `answer` if no stream was asked for. After the first byte of a JSON body, the rest is merely slow:
from then on, `idle` runs.
"""

from collections.abc import Awaitable
from dataclasses import replace
from typing import Final

import msgspec

from gateway.execution.answer import Answer, AttemptFailedError
from gateway.execution.deadline import ExpiredError
from gateway.execution.direct import Exchange
from gateway.execution.hold import ErrorAnswerError, Whole, at_once, hold
from gateway.execution.record import Record, Try
from gateway.execution.refusal import Refusal, read_refusal, retry_after, told_refusal, words
from gateway.execution.upstream import Call, Upstream
from gateway.routing.failures import Cause, Failure, Verdict, status_failure, verdict

_STALE: Final = 1.0
"""Seconds in which a pooled connection that had been closed fails; later, the box closed it while working."""
_REFUSAL_SECONDS: Final = 10.0
_SPARE_REFUSAL_SECONDS: Final = 1.0
_REDIRECTION: Final = 300
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_ABOUT_REQUESTS: Final = frozenset({Cause.CONTEXT_LENGTH, Cause.NOT_SERVED})
"""Causes of a 500 or 501 that is passed on to the client, as the upstream put it: another would say the same."""
_JSON_BEGINS: Final = b"{"


class Opening(Exchange):
    """One attempt before anything of its answer has gone out. Mutable: whether some of a JSON body has come."""

    upstream: Upstream
    record: Record
    this: Try
    came_some: bool = False

    async def begun(self, call: Call) -> tuple[Answer, bytes | Whole | Refusal]:
        """Return an answer that is worth committing to, and its beginning, or a refusal that is meant for the client.

        Raises:
            AttemptFailedError: there is no such answer.

        """
        answer: Answer | None = None
        this, clock = self.this, self.record.clock
        asked = clock()
        try:
            with self.record.deadline:
                try:
                    answer = await self.upstream.open(this.deployment, call, this.clocks.connect, self)
                except AttemptFailedError as error:
                    if verdict(error.failure) is not Verdict.RETRY_HERE or clock() - asked > _STALE:
                        raise
                    this.detail = "reconnected: the pooled connection was closed"
                    answer = await self.upstream.open(this.deployment, call, this.clocks.connect, self, fresh=True)
                this.status = status = answer.status
                if status < _REDIRECTION:
                    try:
                        whole = at_once(answer)
                        return answer, await self._held(answer) if whole is None else whole
                    except ErrorAnswerError as error:
                        self._keep(answer, error)
                        raise
                return answer, await self._refused(answer)
        except ExpiredError:
            self._closed(answer)
            raise AttemptFailedError(self._silence()) from None
        except BaseException:
            self._closed(answer)
            raise

    def _held(self, answer: Answer) -> Awaitable[bytes | Whole]:
        return hold(answer, self._came, self.record.passes if self.this.rescue is None else None)

    def _closed(self, answer: Answer | None) -> None:
        """Close the answer and forget what has come: none of it has gone out."""
        if answer is not None:
            answer.close()
        if self.this.rescue is None:
            self.record.passing = None

    def sent(self) -> None:
        """Start the clock for the first content."""
        self.record.deadline.after(self._patience())

    def _patience(self) -> float:
        clocks = self.this.clocks
        return clocks.first_token if self.record.ask.stream else clocks.answer

    def _came(self) -> None:
        self.came_some = True
        self.record.deadline.after(self.this.clocks.idle)

    def _silence(self) -> Failure:
        clocks = self.this.clocks
        if self.came_some:
            return Failure(Cause.STALLED, f"no more of the body for {clocks.idle:g} s")
        return Failure(Cause.FIRST_TOKEN_TIMEOUT, f"no content in {self._patience():g} s")

    def _keep(self, answer: Answer, error: ErrorAnswerError) -> None:
        """Keep an error that came in place of an answer: it may be sent to the client."""
        failure, deployment = error.failure, self.this.deployment
        if failure.status is not None:
            self.record.refused(failure.cause, told_refusal(answer, deployment, failure.status, error.error))
        error.failure = msgspec.structs.replace(failure, said=words(error.error, deployment))

    async def _refused(self, answer: Answer) -> Refusal:
        status, deployment = answer.status, self.this.deployment
        known = status_failure(status)
        if known is not None and status < _CLIENT_ERROR:
            raise AttemptFailedError(known)
        seconds = _REFUSAL_SECONDS if known is None else _SPARE_REFUSAL_SECONDS
        after = retry_after(answer.facts.headers)
        try:
            refusal = await read_refusal(answer, deployment, seconds)
        except AttemptFailedError as error:
            raise AttemptFailedError(status_failure(status, retry_after=after) or error.failure) from error
        failure = status_failure(status, refusal.body, after, deployment.served_model)
        if failure is None:
            return refusal
        is_told = status >= _SERVER_ERROR and failure.cause in _ABOUT_REQUESTS
        if is_told and refusal.body.lstrip().startswith(_JSON_BEGINS):
            refusal = replace(refusal, status=_CLIENT_ERROR)
        if refusal.status < _SERVER_ERROR:
            self.record.refused(failure.cause, refusal)
            raise AttemptFailedError(failure)
        raise AttemptFailedError(msgspec.structs.replace(failure, said=words(refusal.body, deployment)))
