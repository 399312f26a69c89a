"""A bare aiohttp pass-through, for comparison: no routing, no log, no health checks, no failover.

`python passthrough.py PORT UPSTREAM_PORT`
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop
from aiohttp import web


def handler(session: aiohttp.ClientSession, base: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler that passes a request to the upstream, and its answer back as it arrives."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"Content-Type": "application/json"}
        async with session.post(base + request.path, data=body, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            if answer.content_length is not None:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    return handle


async def main(port: int, upstream: int) -> None:
    """Serve until killed."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/{path:.*}", handler(session, f"http://127.0.0.1:{upstream}"))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as running:
        running.run(main(int(sys.argv[1]), int(sys.argv[2])))
