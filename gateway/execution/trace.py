"""W3C Trace Context: where a request stands in a trace, decided before its first attempt.

An upstream is sent the span id of the attempt that asks it, so that its own spans become children of that one. The ids
are therefore created while the request runs, and whether it is recorded is decided when it arrives; the spans are built
from them when it is over.

https://www.w3.org/TR/trace-context-2/. A malformed traceparent is treated as absent, and its tracestate with it; a
malformed tracestate is dropped whole.
"""

import random
import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""Flags: the caller may have recorded its span; the right half of the trace id is random."""

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_HALF: Final = 1 << 64
_LONGEST_STATE: Final = 512
_MOST_MEMBERS: Final = 32
_MEMBER: Final = re.compile(r"[ \t]*([a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~])?[ \t]*")
"""What stands between a tracestate's commas: a key and its value, or nothing."""

_random: Final = random.Random()  # noqa: S311 - ids, not secrets


def new_span_id() -> int:
    """Return a new span id: 64 random bits, not all 0."""
    return _random.getrandbits(64) or 1


class Trace(Struct, frozen=True):
    """A request's place in a trace.

    `span_id` is the request's own, `parent_id` that of the client's span, if it named one. `flags` are the
    traceparent's. `state` is the client's tracestate.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    flags: int
    state: str | None = None

    @property
    def sampled(self) -> bool:
        """Whether spans are recorded."""
        return bool(self.flags & SAMPLED)

    def fields(self, span_id: int) -> dict[str, str]:
        """Return the header fields that name the calling span to an upstream."""
        fields = {"traceparent": f"00-{self.trace_id:032x}-{span_id:016x}-{self.flags:02x}"}
        if self.state:
            fields["tracestate"] = self.state
        return fields


class Sampling(Struct, frozen=True):
    """Which traces are recorded: those of a share of the trace ids, or those that the caller recorded.

    `bound`: ids whose right half is below it are recorded. `parent_decides`: if there is a caller, it decides instead.
    """

    bound: int = _HALF
    parent_decides: bool = True

    @classmethod
    def of(cls, name: str, ratio: float) -> "Sampling | None":
        """Return OpenTelemetry's sampler of that name (OTEL_TRACES_SAMPLER), or None; `ratio` is from 0 to 1.

        https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
        """
        kind = name.removeprefix("parentbased_")
        bounds = {"always_on": _HALF, "always_off": 0, "traceidratio": round(ratio * _HALF)}
        return cls(bounds[kind], kind != name) if kind in bounds else None

    def begin(self, parents: Sequence[str], states: Sequence[str]) -> Trace:
        """Return a request's place in a trace; `parents` and `states` are its traceparent and tracestate fields."""
        parent = _parsed(parents)
        if parent is None:
            trace_id = _random.getrandbits(128) or 1
            sampled = SAMPLED if trace_id % _HALF < self.bound else 0
            return Trace(trace_id, new_span_id(), None, RANDOM | sampled)
        trace_id, parent_id, flags = parent
        sampled = flags & SAMPLED if self.parent_decides else SAMPLED * (trace_id % _HALF < self.bound)
        return Trace(trace_id, new_span_id(), parent_id, flags & RANDOM | sampled, _state(states))


def _parsed(parents: Sequence[str]) -> tuple[int, int, int] | None:
    """Read a traceparent (section 3.2): trace id, parent id, flags; of a later version, the part known here."""
    match = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    trace_id, parent_id = int(match[2], 16), int(match[3], 16)
    return (trace_id, parent_id, int(match[4], 16)) if trace_id and parent_id else None


def _state(states: Sequence[str]) -> str | None:
    """Join the tracestate fields (section 3.3); None if they are too long or not a list of members."""
    joined = ",".join(states)
    if len(joined) > _LONGEST_STATE:
        return None
    members = joined.split(",")
    return joined if len(members) <= _MOST_MEMBERS and all(map(_MEMBER.fullmatch, members)) else None
