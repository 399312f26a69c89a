"""Accepting connections, with a limit, and when the system is out of resources.

uvloop's server accepts by itself. Out of file descriptors, it closes each waiting connection, by means of a descriptor
that it keeps in reserve; when it has lost that one, it retries without a pause. Neither is logged. asyncio's server
retries each second, and logs every waiting connection each time. So this module accepts itself: when accepting fails,
all sockets pause until a connection ends or a while has passed. New connections wait in the kernel's backlog meanwhile.
"""

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from gateway.sockets import CLIENT_GONE, keep_asking

_Taken = tuple[asyncio.BaseTransport, asyncio.BaseProtocol]

_BACKLOG: Final = 4096
_BATCH: Final = 64
_RETRY: Final = 0.5
_CALM: Final = 5.0
_NOT_HERE: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class Listener:
    """The listening sockets.

    `make` makes a connection's protocol; `has_room` returns whether one more may be accepted, given the number of those
    that are arriving; `tell` logs an event with its fields. Mutable: the sockets, the connections that are arriving,
    the timer while nothing is accepted, and when accepting failed and whether that was logged.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        has_room: Callable[[int], bool],
        tell: Callable[[str, Mapping[str, object]], None],
        calm: float = _CALM,
    ) -> None:
        """Start without sockets; failures less than `calm` seconds apart are logged as one."""
        self.sockets: list[socket.socket] = []
        self._make = make
        self._has_room = has_room
        self._tell = tell
        self._arriving: set[asyncio.Task[_Taken]] = set()
        self._calm = calm
        self._listens = self._accepts = False
        self._told = False
        self._failed_at = 0.0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches the addresses that are bound."""
        return all(ipaddress.ip_address(each.getsockname()[0]).is_loopback for each in self.sockets)

    async def bind(self, hosts: str, port: int) -> None:
        """Bind addresses, without listening: one host or several, separated by commas.

        Raises:
            OSError: one is taken, not ours, or not an address.

        """
        for host in hosts.split(","):
            await self._bind(host.strip(), port)

    async def _bind(self, host: str, port: int) -> None:
        """Bind one host; of a name's addresses, those that this machine has."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        before = len(self.sockets)
        missing: OSError | None = None
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                self.sockets.append(_bound(socket.socket(family, kind, protocol), address))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
        if missing and len(self.sockets) == before:
            raise missing

    def start(self) -> None:
        """Listen and accept.

        Raises:
            OSError: another process began to listen on the address first.

        """
        for each in self.sockets:
            each.listen(_BACKLOG)
        self._listens = True
        self.resume()

    def resume(self) -> None:
        """Resume accepting: a connection has ended, or a while has passed."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._listens and not self._accepts:
            self._accepts = True
            for each in self.sockets:
                asyncio.get_running_loop().add_reader(each.fileno(), self._accept, each)

    def close(self) -> None:
        """Close the sockets; waiting connections are reset."""
        self._rest()
        self._listens = False
        if self._retry is not None:
            self._retry.cancel()
        for each in self.sockets:
            each.close()
        self.sockets.clear()

    def _rest(self) -> None:
        if self._accepts:
            self._accepts = False
            for each in self.sockets:
                asyncio.get_running_loop().remove_reader(each.fileno())

    def _accept(self, listening: socket.socket) -> None:
        """Accept waiting connections, a batch at a time so that the loop can do other work."""
        for _ in range(_BATCH):
            if not self._has_room(len(self._arriving)):
                self._rest()
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._failed(error)
                return
            self._works()
            accepted.settimeout(0)
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.connect_accepted_socket(self._make, accepted))
            self._arriving.add(task)
            task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[_Taken]) -> None:
        """Check for room again: until now the connection counted twice, as arriving and as open."""
        self._arriving.discard(task)
        if not self._arriving:
            self.resume()

    def _failed(self, error: OSError) -> None:
        self._rest()
        loop = asyncio.get_running_loop()
        self._failed_at = loop.time()
        if not self._told:
            self._told = True
            self._tell("connections.unaccepted", {"reason": os.strerror(error.errno or 0).lower()})
        if self._retry is None:
            self._retry = loop.call_later(_RETRY, self.resume)

    def _works(self) -> None:
        if self._told and asyncio.get_running_loop().time() - self._failed_at >= self._calm:
            self._told = False
            self._tell("connections.accepted", {})


def _bound(made: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        made.settimeout(0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_asking(made, CLIENT_GONE)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def reachable(url: str) -> str:
    """Return the URL by which this machine reaches a URL that the gateway listens on."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
