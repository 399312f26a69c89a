"""What a box is, and how it behaves while it runs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from gateway.simulator.faults import AnyFault, Loading
from gateway.simulator.script import Json, Reply

Prefill = Literal["asked", "always", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Box:
    """The properties with which a box starts.

    `models` are the ids it knows (none: it accepts any); `first_token` is the delay before an answer's first token
    in seconds; `token_rate` is in tokens per second (0: no delay); `tokens` is the length of an answer; `api_key` is
    the bearer token that it requires.

    The text names the box or, when it is `deterministic`, depends on nothing but the prompt. `prefill` says what is
    done with a chat that ends with an assistant message: it is continued when `continue_final_message` asks for that
    (as by vLLM and SGLang), always (llama.cpp) or never, or it is refused with 400.
    """

    name: str
    models: tuple[str, ...] = ()
    first_token: float = 0.0
    token_rate: float = 0.0
    tokens: int = 12
    api_key: str | None = field(default=None, repr=False)
    deterministic: bool = False
    prefill: Prefill = "asked"


@dataclass(slots=True)
class Pending:
    """A fault and its limits: `left` in requests, `until` as a time on the box's clock; None is no limit."""

    fault: AnyFault
    left: int | None
    until: float | None


@dataclass(slots=True)
class State:
    """How a running box behaves, and what it counts: open streams, accepted requests, faults."""

    first_token: float
    token_rate: float
    deterministic: bool = False
    prefill: Prefill = "asked"
    healthy: bool = True
    streams: int = 0
    requests_by_model: Counter[str] = field(default_factory=Counter)
    pending: list[Pending] = field(default_factory=list)
    faults_by_kind: Counter[str] = field(default_factory=Counter)
    faults_by_model: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, box: Box) -> "State":
        """Return the state in which a box starts."""
        return cls(box.first_token, box.token_rate, box.deterministic, box.prefill)

    def pace(self, index: int) -> float:
        """Return the seconds to wait before a token."""
        if not index:
            return self.first_token
        return 1 / self.token_rate if self.token_rate else 0

    def plan(self, faults: list[AnyFault], now: float) -> None:
        """Schedule these faults, one after the other, in place of those that are left; an empty list heals the box."""
        self.pending = [_pending(fault, now) for fault in faults]
        self.faults_by_model.clear()

    def take(self, reply: Reply, model: str, now: float) -> AnyFault | None:
        """Return the fault that a reply gets, if any, and count it as used once."""
        for pending in self._active(now):
            if pending.fault.model in {None, model} and pending.fault.fits(reply):
                if pending.left is not None:
                    pending.left -= 1
                return self._happens(pending.fault)
        return None

    def take_named(self, fault: AnyFault, reply: Reply, name: str) -> AnyFault | None:
        """Return the fault that a model's name asks for, unless it does not fit or has happened `times` times."""
        over = isinstance(fault.times, int) and self.faults_by_model[name] >= fault.times
        if over or not fault.fits(reply):
            return None
        self.faults_by_model[name] += 1
        return self._happens(fault)

    def loading(self, now: float) -> Loading | None:
        """Return the fault that keeps the whole box from being ready, if any."""
        faults = (each.fault for each in self._active(now) if each.fault.model is None)
        return next((fault for fault in faults if isinstance(fault, Loading)), None)

    def told(self, now: float) -> Json:
        """Return the state for `GET /simulator`; `left` and `lasts` (seconds) are what remains of a fault."""
        own = ("healthy", "first_token", "token_rate", "deterministic", "prefill", "streams")
        return {
            **{name: getattr(self, name) for name in own},
            "requests": self.requests_by_model.total(),
            "requests_by_model": dict(self.requests_by_model),
            "faults": [_told(pending, now) for pending in self._active(now)],
            "faults_by_kind": dict(self.faults_by_kind),
        }

    def _active(self, now: float) -> Iterator[Pending]:
        return (each for each in self.pending if each.left != 0 and (each.until is None or now < each.until))

    def _happens(self, fault: AnyFault) -> AnyFault:
        self.faults_by_kind[str(fault.__struct_config__.tag)] += 1
        return fault


def _pending(fault: AnyFault, now: float) -> Pending:
    limitless = fault.times == "forever" or (fault.times is None and fault.lasts is not None)
    left = None if limitless else int(fault.times or 1)
    return Pending(fault, left, None if fault.lasts is None else now + fault.lasts)


def _told(pending: Pending, now: float) -> Json:
    told: Json = msgspec.to_builtins(pending.fault)
    until = None if pending.until is None else pending.until - now
    return told | {"left": pending.left, "lasts": until}
