"""Performs a script on a connection of aiohttp's server."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from aiohttp import web

from gateway.simulator.script import Body, End, Head, Pause, Raw, Script

Sleep = Callable[[float], Awaitable[None]]

_LINGER_NOT = struct.pack("ii", 1, 0)


async def play(request: web.Request, script: Script, sleep: Sleep) -> web.StreamResponse:
    """Answer a request by performing a script, until the client leaves."""
    response = web.StreamResponse()
    try:
        for step in script:
            match step:
                case Pause(seconds):
                    await sleep(seconds)
                case Head():
                    response = _begun(step)
                    await response.prepare(request)
                case Body(data):
                    await response.write(data)
                case Raw(data):
                    _transport(request).write(data)
                case _:
                    await _end(_transport(request), step)
    except ConnectionError:
        pass  # the client left; aiohttp would log a traceback
    return response


def _begun(head: Head) -> web.StreamResponse:
    response = web.StreamResponse(status=head.status, headers=[("content-type", head.content_type), *head.headers])
    response.content_length = head.length
    return response


def _transport(request: web.Request) -> asyncio.Transport:
    if request.transport is None:
        raise ConnectionResetError
    return request.transport


async def _end(transport: asyncio.Transport, how: End) -> None:
    """Close with a FIN, or with an RST, which discards what the kernel does not have yet."""
    if how is End.CLOSE:
        transport.close()
        return
    await asyncio.sleep(0)  # uvloop writes at the end of a turn
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()
