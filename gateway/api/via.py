"""Request loops: where a base URL leads to the gateway itself, each request would come back to it again and again.

A gateway names itself in Via (RFC 9110 7.6.3). Of the other names there, only those of such gateways are passed on, so
that a loop through two of them is detected too, and no upstream learns what is in front of the first.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

from gateway.api.errors import RequestError

_OURS: Final = re.compile(r"1\.1 hybrid-inference-gateway-[0-9a-f]{8}\Z")


class Via:
    """The name of one gateway, drawn at random when it starts."""

    def __init__(self, dice: Callable[[], float]) -> None:
        """Draw the name; `dice` returns a float in [0, 1)."""
        self._own = f"1.1 hybrid-inference-gateway-{int(dice() * 2**32):08x}"

    def onwards(self, came: Iterable[str]) -> str:
        """Return the field for a request that came with these."""
        return ", ".join([*(name for name in _names(came) if _OURS.match(name)), self._own])

    def check(self, came: Iterable[str]) -> None:
        """Refuse a request that has been here before.

        Raises:
            RequestError: 508 (RFC 5842 7.2).

        """
        if self._own in _names(came):
            message = "the request has been here before: a base URL leads back to this gateway"
            raise RequestError(508, message, code="loop_detected")


def _names(fields: Iterable[str]) -> list[str]:
    return [name.strip() for field in fields for name in field.split(",")]
