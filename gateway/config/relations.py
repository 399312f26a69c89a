"""Checks on values of routing.yaml that constrain each other.

They work on the raw data, so that these faults are reported together with those of the schema. A value that is not a
number has a fault of its own.
"""

from collections.abc import Iterator
from typing import Final

from gateway.config.documents import BreakerEntry
from gateway.config.environment import Interpolated
from gateway.config.faults import Fault
from gateway.config.fields import is_nothing
from gateway.config.scalars import resolve
from gateway.config.shown import Path, shown
from gateway.config.strict_yaml import Broken, Tree

_CONNECT: Final[Path] = ("timeouts", "connect")
_CHECKS: Final[Path] = ("health_check",)
_OFTEN: Final = 0.1
_HOLD: Final[Path] = ("breaker", "hold")
_LONGEST_HOLD: Final[Path] = ("breaker", "longest_hold")
_CLIENTS: Final = "clients"


def unrelated(tree: Tree) -> Iterator[Fault]:
    """Yield the faults of a routing.yaml whose values contradict each other."""
    short, connect = _given(tree, ("timeout",)), _given(tree, _CONNECT)
    if short is not None and connect is not None:
        told = f"found {shown(connect, _CONNECT)} beside a timeout of {shown(short, ('timeout',))}"
        yield tree.fault(_CONNECT, f"{told}, expected one of the two: they are the same")
    yield from _holds(tree)
    yield from _same_clients(tree)


def odd_checks(tree: Tree) -> Iterator[Fault]:
    """Yield a notice where a routing.yaml says how endpoints are probed but not how often, or probes them too often."""
    checks = _given(tree, _CHECKS)
    if isinstance(checks, dict) and checks and "interval" not in checks:
        yield tree.fault(_CHECKS, "nothing is probed without an interval: set one, or 0 if that is meant")
    path = (*_CHECKS, "interval") if isinstance(checks, dict) else _CHECKS
    value = _given(tree, path)
    seconds = _number(value)
    if seconds is not None and seconds < _OFTEN:
        told = f"found {shown(value, path)}, which makes {1 / seconds:,.0f} probes of each endpoint a second"
        yield tree.fault(path, f"{told}: an interval is in seconds, 5 is usual")


def _holds(tree: Tree) -> Iterator[Fault]:
    fields = BreakerEntry.model_fields
    hold, longest = _given(tree, _HOLD), _given(tree, _LONGEST_HOLD)
    first = _number(fields["hold"].default if hold is None else hold)
    last = _number(fields["longest_hold"].default if longest is None else longest)
    if first is None or last is None or first <= last:
        return
    if longest is None:
        told = f"found {shown(hold, _HOLD)}, expected at most the longest_hold of {last:g}"
        yield tree.fault(_HOLD, told)
    else:
        than = f"{first:g}" if hold is None else shown(hold, _HOLD)
        yield tree.fault(_LONGEST_HOLD, f"found {shown(longest, _LONGEST_HOLD)}, expected at least the hold of {than}")


def _same_clients(tree: Tree) -> Iterator[Fault]:
    """Yield a fault for each client that has the name or the key of another one."""
    entries = _given(tree, (_CLIENTS,))
    for part, called in (("name", "name"), ("api_key", "key")):
        known: dict[str, int] = {}
        for position in range(len(entries) if isinstance(entries, list) else 0):
            path = (_CLIENTS, position, part)
            value = _given(tree, path)
            if isinstance(value, str) and known.setdefault(value, position) != position:
                yield tree.fault(path, f"found the {called} of clients[{known[value]}], expected one of its own")


def _given(tree: Tree, path: Path) -> object:
    """Return the value at a path; None where it is left out, has a fault, or is interpolated text that is empty."""
    try:
        value = tree.at(path)
    except LookupError:
        return None
    return None if is_nothing(value) or isinstance(value, Broken) else value


def _number(value: object) -> float | None:
    """Read a positive number as the fields do; None for any other value, which needs no check here."""
    read = resolve(value) if isinstance(value, Interpolated) else value
    return read if isinstance(read, int | float) and not isinstance(read, bool) and read > 0 else None
