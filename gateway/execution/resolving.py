"""Names are resolved in threads of their own.

uvloop resolves them in the four threads of libuv, two at a time, and every connect goes through those threads as well,
even one to an IP address. So two names whose servers do not answer would hold up every new connection, to any box.
"""

import asyncio
import errno
import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.threads import DaemonThreads

_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Resolver(AbstractResolver):
    """Asks the system, in one thread per question; aiohttp asks for a name once at a time, and caches the answers.

    Mutable: the names that are being `sought`; a caller may give up before its name is found.
    """

    def __init__(self) -> None:
        """Start without look-ups."""
        self.sought: list[str] = []
        self._threads = DaemonThreads("lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look up a name.

        Raises:
            OSError: the name was not found, or no thread can be started to look it up.

        """
        loop = asyncio.get_running_loop()
        try:
            looking = loop.run_in_executor(self._threads, _found, host, port, family)
        except RuntimeError as error:
            raise OSError(errno.ENOMEM, str(error)) from error
        self.sought.append(host)
        try:
            return await looking
        finally:
            self.sought.remove(host)

    async def close(self) -> None:
        """Do nothing: nobody waits for a look-up that hangs."""


def _found(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],  # with an IPv6 scope
            port=int(address[1]),
            family=kind,
            proto=protocol,
            flags=_NUMERIC,
        )
        for kind, _, protocol, _, address in found
    ]
