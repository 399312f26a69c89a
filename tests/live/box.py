"""A simulated box in a process of its own, which a test may kill: `python box.py NAME FIRST_TOKEN`; says its port."""

import asyncio
import sys

from aiohttp import web

from gateway.simulator import Box, create_simulator


async def serve(name: str, first_token: float) -> None:
    runner = web.AppRunner(create_simulator(Box(name, first_token=first_token)), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
