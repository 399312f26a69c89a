"""`gateway demo`: three simulated boxes, a configuration that points at them, and the gateway in front."""

import errno
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from aiohttp import web

from gateway.api.body import Limits
from gateway.lifecycle import CannotListenError, CannotServeError, Door, Listen, serve
from gateway.listener import reachable
from gateway.observe.target import STREAMS
from gateway.server import Options
from gateway.simulator import Box, create_simulator

MODEL: Final = "demo-chat"
BOXES: Final = (
    Box("local-a", (MODEL, "demo-embed"), first_token=0.15, token_rate=25, tokens=24),
    Box("local-b", (MODEL,), first_token=0.15, token_rate=25, tokens=24),
    Box("remote", (MODEL, "demo-embed"), first_token=0.4, token_rate=60, tokens=24, prefill="refused"),
)
CHAOS_BOXES: Final = tuple(replace(box, deterministic=True) for box in BOXES)


@dataclass(frozen=True, slots=True)
class Chaos:
    """A fault to try: the model `chaos-NAME`, whose first box has this fault and whose second has none.

    `fault` is written as in a model's name; `box` is the number of the second box. `ends` is the result: the second box
    answers, the first one's answer is whole after all, it is a refusal, or the second box continues a broken answer.
    """

    name: str
    fault: str
    told: str
    ends: Literal["elsewhere", "whole", "refused", "rescued"]
    stream: bool = True
    box: int = 1


CHAOS: Final = (
    Chaos("reset", "reset", "reset before the head", "elsewhere"),
    Chaos("close", "close", "closed before the head", "elsewhere"),
    Chaos("silence", "silence?seconds=10", "no answer for ten seconds", "elsewhere"),
    Chaos("trickle", "trickle?seconds=0.1", "a head that comes byte by byte", "elsewhere"),
    Chaos("head", "head_only?seconds=10", "a head, and nothing for ten seconds", "elsewhere"),
    Chaos("comments", "comments?count=10&seconds=0", "comments for ten seconds, and nothing else", "elsewhere"),
    Chaos("late", "late?seconds=10", "the first token after ten seconds", "elsewhere"),
    Chaos("limit", "status?status=429&retry_after=30", "429: come back after 30 seconds", "elsewhere"),
    Chaos("error", "status?status=500", "500", "elsewhere"),
    Chaos("unavailable", "status?status=503", "503", "elsewhere"),
    Chaos("overloaded", "status?status=529", "529", "elsewhere"),
    Chaos("loading", "loading", "503 from a box that loads its model", "elsewhere"),
    Chaos("key", "status?status=401", "401: the gateway's key is wrong", "elsewhere"),
    Chaos("credit", "status?status=402", "402: the gateway's credit is spent", "elsewhere"),
    Chaos("missing", "status?status=404", "404: the box does not have the model", "elsewhere"),
    Chaos("error-body", "error_body", "200, and an error for a body", "elsewhere"),
    Chaos("error-event", "error_event", "200, and an error for the first event", "elsewhere"),
    Chaos("empty", "empty_body", "200, and nothing", "elsewhere"),
    Chaos("half", "cut?end=clean", "200, and half a JSON text", "elsewhere", stream=False),
    Chaos("page", "wrong_type", "200, and a page for people", "elsewhere"),
    Chaos("once", "status?status=429&retry_after=1&times=1", "429, once: come back after a second", "whole"),
    Chaos("malformed", "malformed", "an event that is not JSON, in mid-stream", "whole"),
    Chaos("early-finish", "early_finish", "a finish reason in each event", "whole"),
    Chaos("no-done", "no_done", "no [DONE]", "whole"),
    Chaos("held-open", "held_open?seconds=10", "no [DONE], and ten seconds until the end", "whole"),
    Chaos("context", "context_length", "the prompt is too long", "refused"),
    Chaos("filter", "content_filter", "the prompt is against the provider's policy", "refused"),
    Chaos("cut", "cut", "reset after five tokens", "rescued"),
    Chaos("truncated", "cut?end=clean", "a clean end after five tokens, without a finish reason", "rescued"),
    Chaos("stall", "stall?seconds=10", "silence after five tokens", "rescued"),
    Chaos("replay", "cut", "reset after five tokens, and the next box refuses to continue a text", "rescued", box=2),
)

_OURS: Final = b"# gateway demo: "
_MODELS: Final = """\
# gateway demo: what can be asked for. Save this file and the next request is routed by it.
models:
  - id: demo-chat
    aliases: [demo]
    description: Three simulated boxes; each answer says which one gave it.
    context_length: 8192
    pricing: {{prompt: "0.0000005", completion: "0.0000015"}}
    route:
      - {{name: local-a, kind: vllm, base_url: "{0}"}}
      - {{name: local-b, kind: vllm, base_url: "{1}"}}
      - {{name: remote, kind: openai_compatible, base_url: "{2}"}}
  - id: demo-embed
    description: Embeddings from one local box and the remote one.
    pricing: {{prompt: "0.00000002"}}
    route:
      - {{name: local-a, kind: vllm, base_url: "{0}"}}
      - {{name: remote, kind: openai_compatible, base_url: "{2}"}}
"""

_CHAOS_MODEL: Final = """\
  - id: chaos-{chaos.name}
    description: "{chaos.told}"
    route:
      - {{name: faulty, kind: vllm, base_url: "{faulty}", provider_model_id: "demo-chat+{chaos.fault}"}}
      - {{name: healthy, kind: vllm, base_url: "{healthy}", provider_model_id: demo-chat, weight: 0}}
"""

_CHAOS_ROUTING: Final = """\
timeouts:
  first_token: 3
  idle: 3
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
ledger:
  url: {ledger} # gateway stats prints what is in it
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
Watch it work in a browser: {url}/

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
  curl -s {url}/stats
  tail -F {log}

Take a box down (its siblings take its share within two seconds):
  curl -s {box}/simulator -d '{{"healthy": false}}'

"""

_CHAOS_HEADINGS: Final = {
    "elsewhere": "Let a box fail before it has said anything. The next one answers:",
    "whole": "Let it fail once, or where no harm is done. Its answer is whole:",
    "refused": "Let it refuse what was asked. Its reason comes back:",
    "rescued": "Let it fail after its first words. The next box carries on, and the stream is one (curl -i shows it):",
}
_CHAOS_CURL: Final = """\
- {chaos.told}
  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "chaos-{chaos.name}", {stream}"messages": [{{"role": "user", "content": "who are you?"}}]}}'
"""
_CHAOS_CONTROL: Final = """\
Let the next ten answers of local-a fail, whatever the model; an empty list heals it (docs/demo.md lists the faults):
  curl -s {box}/simulator -d '{{"fault": {{"kind": "cut", "tokens": 5, "times": 10}}}}'
  curl -s {box}/simulator -d '{{"fault": []}}'

"""
_STOP: Final = "Stop it with Ctrl-C.\n"


async def demo(listen: Listen, limits: Limits, directory: Path | None, *, chaos: bool = False) -> None:
    """Serve the demo until a signal to stop arrives or its terminal is closed.

    If the port is taken, use a free one. `directory` holds the configuration; by default it is a temporary folder that
    is removed with the demo. With `chaos`, the boxes also fail in every way they can, on request.

    Raises:
        CannotServeError: the address is not ours, or the directory holds another configuration or cannot hold one.

    """
    async with AsyncExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-demo-")))
        urls = [await _box(stack, box) for box in (CHAOS_BOXES if chaos else BOXES)]
        log = folder / "output.log"
        write_config(folder, urls, log, chaos=chaos)

        async def opened(door: Door) -> None:
            paths = {"routing": folder / "routing.yaml", "log": shlex.quote(str(log))}
            told = _TOLD.format(url=reachable(door.urls[0]), box=urls[0], **paths)
            more = chaos_told(reachable(door.urls[0]), urls[0]) if chaos else ""
            print(told + more + _STOP, flush=True)

        options = Options(folder, env_file=Path(os.devnull), limits=limits, environ={})
        try:
            await serve(options, listen, opened, outlives_terminal=False)
        except CannotListenError as error:
            if not _is_taken(error):
                raise
            print(f"{error}; taking a free port\n", flush=True)
            await serve(options, replace(listen, port=0), opened, outlives_terminal=False)
        with suppress(OSError):  # the terminal may be gone: `print` would flush again, and fail, when Python exits
            os.write(STREAMS["stderr"], b"stopped\n")


def chaos_told(url: str, box: str) -> str:
    """Return the instructions for trying the faults; `url` is the gateway's, `box` the first box's."""
    parts = []
    for ends, heading in _CHAOS_HEADINGS.items():
        of_it = [chaos for chaos in CHAOS if chaos.ends == ends]
        curls = [_CHAOS_CURL.format(chaos=chaos, url=url, stream='"stream": true, ' * chaos.stream) for chaos in of_it]
        parts.append("\n".join((heading, *curls)))
    return "\n".join((*parts, _CHAOS_CONTROL.format(box=box)))


def write_config(folder: Path, urls: Sequence[str], log: Path, *, chaos: bool = False) -> None:
    """Write models.yaml and routing.yaml for the boxes at these URLs, with a model for each fault if `chaos`.

    Raises:
        CannotServeError: one of them exists and is not a demo's, they cannot be written, or the folder's name cannot be
            written in them.

    """
    if "?" in str(folder) or not str(folder).isprintable():
        raise CannotServeError(f"found the folder {str(folder)!r}, expected one without ? and control characters")
    output, ledger = _quoted(log), _quoted(f"sqlite:///{folder / 'ledger.db'}")
    routing = _ROUTING.format(*urls, log=output, ledger=ledger)
    texts = {"models.yaml": _MODELS.format(*urls), "routing.yaml": routing}
    if chaos:
        texts["models.yaml"] += "".join(_chaos_model(each, urls) for each in CHAOS)
        texts["routing.yaml"] += _CHAOS_ROUTING
    try:
        _write(folder, texts)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise CannotServeError(
            f"cannot write {error.filename or folder}: {reason}, give --dir another folder"
        ) from error


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    for name in texts:
        file = folder / name
        if file.exists() and not file.read_bytes().startswith(_OURS):
            raise CannotServeError(f"{file} is not a demo's, give --dir another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _quoted(value: object) -> str:
    """Quote text for a configuration file, where the gateway expands ${VAR} in any string."""
    return json.dumps(str(value), ensure_ascii=False).replace("$", "$$")


def _chaos_model(chaos: Chaos, urls: Sequence[str]) -> str:
    return _CHAOS_MODEL.format(chaos=chaos, faulty=urls[0], healthy=urls[chaos.box])


async def _box(stack: AsyncExitStack, box: Box) -> str:
    runner = web.AppRunner(create_simulator(box), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def _is_taken(error: CannotListenError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
