"""`gateway demo`: three simulated boxes, a configuration that points at them, and the gateway in front."""

import errno
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway.api.openai import Limits
from gateway.lifecycle import CannotListenError, CannotServeError, Door, Listen, serve
from gateway.server import Options
from gateway.simulator import Box, create_simulator

MODEL: Final = "demo-chat"
BOXES: Final = (
    Box("local-a", (MODEL, "demo-embed"), first_token=0.15, token_rate=25, tokens=24),
    Box("local-b", (MODEL,), first_token=0.15, token_rate=25, tokens=24),
    Box("remote", (MODEL, "demo-embed"), first_token=0.4, token_rate=60, tokens=24),
)

_OURS: Final = b"# gateway demo: "
_MODELS: Final = """\
# gateway demo: what can be asked for. Save this file and the next request is routed by it.
models:
  - id: demo-chat
    aliases: [demo]
    description: Three simulated boxes; each answer says which one gave it.
    context_length: 8192
    route:
      - {{name: local-a, kind: vllm, base_url: "{0}"}}
      - {{name: local-b, kind: vllm, base_url: "{1}"}}
      - {{name: remote, kind: openai_compatible, base_url: "{2}"}}
  - id: demo-embed
    description: Embeddings from one local box and the remote one.
    route:
      - {{name: local-a, kind: vllm, base_url: "{0}"}}
      - {{name: remote, kind: openai_compatible, base_url: "{2}"}}
"""

_ROUTING: Final = """\
# gateway demo: who gets how much. Change local_fraction to 1.0, save, and ask again: everything stays local.
routing_strategy: fixed
routing_parameter:
  local_fraction: 0.6
  selection: smooth
timeout: 2
health_check: 2
logging:
  output: {log}
local_deployment:
  - endpoint: {0}
    models: [demo-chat, demo-embed]
  - endpoint: {1}
    models: [demo-chat]
remote_deployment:
  - endpoint: {2}
    models: [demo-chat, demo-embed]
"""

_TOLD: Final = """\
The gateway serves on {url}, in front of three simulated boxes.

Ask it (again and again: six of ten answers are local):
  curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "demo-chat", "messages": [{{"role": "user", "content": "who are you?"}}]}}'

Watch the tokens come:
  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "demo-chat", "stream": true, "messages": [{{"role": "user", "content": "who are you?"}}]}}'

Change the split while it serves: set local_fraction to 1.0 in
  {routing}

See what it does:
  curl -s {url}/routing
  tail -f {log}

Take a box down (its siblings take its share within two seconds):
  curl -s {box}/simulator -d '{{"healthy": false}}'

Stop it with Ctrl-C.
"""


async def demo(listen: Listen, limits: Limits, directory: Path | None) -> None:
    """Serve the demo until a signal says to stop.

    A port that is taken gives way to a free one; `directory` holds the configuration, a new folder by default, which
    goes with the demo.

    Raises:
        CannotServeError: the address is not ours, or the directory holds somebody else's configuration.

    """
    async with AsyncExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-demo-")))
        urls = [await _box(stack, box) for box in BOXES]
        log = folder / "output.log"
        write_config(folder, urls, log)

        async def opened(door: Door) -> None:
            paths = {"routing": folder / "routing.yaml", "log": shlex.quote(str(log))}
            print(_TOLD.format(url=_reachable(door.urls[0]), box=urls[0], **paths), flush=True)

        options = Options(folder, env_file=folder / ".env", limits=limits, environ={})
        try:
            await serve(options, listen, opened)
        except CannotListenError as error:
            if not _is_taken(error):
                raise
            print(f"{error}; taking a free port\n", flush=True)
            await serve(options, replace(listen, port=0), opened)
        print("stopped", file=sys.stderr)


def write_config(folder: Path, urls: Sequence[str], log: Path) -> None:
    """Write models.yaml and routing.yaml for the boxes at these URLs.

    Raises:
        CannotServeError: one of them is there and is not a demo's.

    """
    output = json.dumps(str(log)).replace("$", "$$")  # the gateway reads ${VAR} in any string
    texts = {"models.yaml": _MODELS.format(*urls), "routing.yaml": _ROUTING.format(*urls, log=output)}
    for name in texts:
        file = folder / name
        if file.exists() and not file.read_bytes().startswith(_OURS):
            raise CannotServeError(f"{file} is not a demo's, give --dir another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


async def _box(stack: AsyncExitStack, box: Box) -> str:
    runner = web.AppRunner(create_simulator(box), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def _reachable(url: str) -> str:
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _is_taken(error: CannotListenError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
