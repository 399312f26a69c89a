"""Sockets that notice that the machine at the other end is gone.

A process that thinks is silent, and so is one whose machine has lost its power or its network. But the kernel of the
first acknowledges what it is sent. So it is asked for that when nothing else is to be sent (keep-alives, RFC 9293
3.8.4), and what it does not acknowledge is not sent again for ever (the user timeout, RFC 5482).
"""

import socket
from typing import Final, Protocol

GONE: Final = 20
"""Seconds without a sign of it after which an upstream's machine is gone."""
CLIENT_GONE: Final = 60
_PROBES: Final = 2
_MILLISECONDS: Final = 1000


class _Settable(Protocol):
    """A socket, or what a transport shows of its own."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


def keep_asking(made: socket.socket, seconds: int) -> None:
    """Lose the connection when the other machine, which nothing was to be sent to, is not heard for so many seconds.

    What a listening socket is told counts for the connections that it accepts.
    """
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(made, "TCP_KEEPIDLE", max(seconds // 2, 1))
    _set(made, "TCP_KEEPINTVL", max(seconds // 4, 1))
    _set(made, "TCP_KEEPCNT", _PROBES)


def acknowledge_within(made: _Settable, seconds: int) -> None:
    """Lose the connection when the other machine does not acknowledge what it was sent for so many seconds.

    0: the system's patience, a quarter of an hour. Who has no room for it acknowledges nothing either, however alive:
    so this is for what its kernel takes, whether its process reads or not.
    """
    _set(made, "TCP_USER_TIMEOUT", seconds * _MILLISECONDS)


def _set(made: _Settable, name: str, value: int) -> None:
    """Set an option of TCP's, where the system has it."""
    option = getattr(socket, name, None)
    if option is not None:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
