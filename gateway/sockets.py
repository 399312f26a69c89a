"""Socket options that detect that the machine at the other end is gone, and what it has yet to acknowledge.

A process that is thinking is silent, and so is one whose machine has lost power or network. But the first one's kernel
acknowledges what it is sent. So an idle connection is probed (keep-alives, RFC 9293 3.8.4), and data that is not
acknowledged is not retransmitted for ever (the user timeout, RFC 5482).
"""

import fcntl
import socket
import sys
import termios
from typing import Final, Protocol

GONE: Final = 20
"""Seconds without a sign of life after which an upstream's machine counts as gone."""
CLIENT_GONE: Final = 60
_PROBES: Final = 2
_MILLISECONDS: Final = 1000
_INT: Final = 4
_ACKED: Final = slice(120, 128)
"""Where Linux's `struct tcp_info` has `tcpi_bytes_acked` (linux/tcp.h, since 4.2)."""


class Socket(Protocol):
    """A socket, or the part of it that a transport exposes."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None:
        """Set an option."""
        ...

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes:
        """Return the value of an option, at most so many bytes."""
        ...

    def fileno(self) -> int:
        """Return the descriptor, -1 if it is closed."""
        ...


def keep_asking(made: socket.socket, seconds: int) -> None:
    """Drop an idle connection when nothing was heard from the other machine for this many seconds.

    Accepted connections inherit the setting from a listening socket.
    """
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(made, "TCP_KEEPIDLE", max(seconds // 2, 1))
    _set(made, "TCP_KEEPINTVL", max(seconds // 4, 1))
    _set(made, "TCP_KEEPCNT", _PROBES)


def acknowledge_within(made: Socket, seconds: int) -> None:
    """Drop the connection when the other machine does not acknowledge data for this many seconds.

    0 means the system's default, about a quarter of an hour. A machine whose receive buffer is full acknowledges
    nothing either, although it is alive, so use this only for data that its kernel takes even if its process does not
    read.
    """
    _set(made, "TCP_USER_TIMEOUT", seconds * _MILLISECONDS)


def has_unacknowledged(made: Socket) -> bool:
    """Return whether the other machine has yet to acknowledge bytes that were written (Linux's tcp(7): SIOCOUTQ).

    Raises:
        OSError, ValueError: the socket is closed.

    """
    counted = fcntl.ioctl(made.fileno(), termios.TIOCOUTQ, bytes(_INT))
    return int.from_bytes(counted, sys.byteorder) > 0


def acknowledged(made: Socket) -> int:
    """Return how many bytes the other machine has acknowledged since the connection was made; 0 if unknown.

    Raises:
        OSError, ValueError: the socket is closed.

    """
    if sys.platform != "linux":
        return 0
    return int.from_bytes(made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.stop)[_ACKED], sys.byteorder)


def _set(made: Socket, name: str, value: int) -> None:
    """Set a TCP option, if the system has it."""
    option = getattr(socket, name, None)
    if option is not None:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
