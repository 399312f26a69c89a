"""Carrying on a stream that broke after its first content had gone to the client.

If the next deployment can continue a text, it is given what the client has (`continue`). Otherwise, or if it refuses
that, the same request is made again and has to say the same again (`replay`); see `joining`. Only what can be repeated
is carried on: one choice, without log-probabilities, of text, reasoning or tool calls. Only text is continued, and only
if the request demands no form (a JSON schema, a grammar): half of anything else has no place in a prompt. Reasoning is
not continued either: what follows it may be returned as part of the answer. The white space at the text's end is not
passed along: chat templates drop it, and tokens begin with it.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import msgspec

from gateway.adapters.continuation import UnreadableRequestError, continued, decoded, is_repeatable
from gateway.execution.completions import CompletionStream
from gateway.execution.takeover import Rescue
from gateway.execution.upstream import Call
from gateway.routing.failures import Cause, Failure
from gateway.routing.snapshot import Deployment, RescuePolicy

_BREAKS: Final = frozenset({Cause.CUT_ANSWER, Cause.STALLED, Cause.ERROR_ANSWER})
_TEXT: Final = {"chat/completions": "content", "completions": "text"}
_REFUSALS: Final = frozenset({400, 404, 405, 409, 415, 422, 500, 501})


class BrokenStream:
    """A request whose stream broke, and how it is made again. `failure` is what broke the stream."""

    def __init__(self, policy: RescuePolicy, call: Call, stream: CompletionStream, failure: Failure) -> None:
        """Take the call that was made, and what the client has of the stream."""
        self.failure = failure
        self._policy = policy
        self._call = call
        self._stream = stream

    @cached_property
    def _request(self) -> Mapping[str, Any]:
        """The request, decoded once; empty if it cannot be read."""
        try:
            return decoded(bytes(self._call.body))
        except UnreadableRequestError:
            return {}

    @property
    def can_be_rescued(self) -> bool:
        """Whether the stream can be carried on."""
        if self._policy == "off" or self._stream.opaque or self.failure.cause not in _BREAKS:
            return False
        return bool(self._request) and is_repeatable(self._request)

    @property
    def length(self) -> int:
        """How many characters of the stream the client has."""
        return sum(len(piece.text) for piece in self._stream.said)

    def call(self, deployment: Deployment) -> tuple[Rescue, Call]:
        """Return how a deployment is asked to take over, and the call that asks it."""
        said = self._stream.said
        is_text = [piece.part for piece in said] == [_TEXT.get(self._call.operation)]
        body = None
        if is_text and self._policy == "on" and said[0].text.strip():
            body = continued(
                self._request,
                self._call.operation,
                said[0].text.rstrip(),
                self._stream.tokens,
                kind=deployment.kind,
                url=deployment.urls[self._call.operation],
            )
        return ("replay", self._call) if body is None else ("continue", msgspec.structs.replace(self._call, body=body))


def is_refused(failure: Failure) -> bool:
    """Return whether an attempt to continue a text may have failed because of that, not because of the deployment."""
    return failure.cause is Cause.ERROR_ANSWER or failure.status in _REFUSALS
