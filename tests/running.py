"""What tests of the whole run: config folders, and gateways in a process of their own.

async with Process("serve", "--config-dir", str(config.path), "--port", "0") as gateway:
    ...  # talk to await gateway.url()
    gateway.send_signal(signal.SIGTERM)
    assert await gateway.ended() == 0
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import gateway
from gateway.lifecycle import Door, Listen
from gateway.server import Options
from tests.fakes.connection import PATIENCE

START_PATIENCE: Final = 60.0
"""Seconds that a process may take to start on a machine under load. A guard, never a measure."""

_ROOT: Final = Path(gateway.__file__).parents[1]
_OURS: Final = re.compile(r"PORT|MODELS_CONFIG|ROUTING_CONFIG|GATEWAY_.*")
_INTERVAL: Final = 0.01


class Config:
    """A config folder and its log file. Files are saved whole, by renaming, as most editors do."""

    def __init__(self, parent: Path) -> None:
        self.path = parent / "config"
        self.path.mkdir()
        self.log = parent / "output.log"

    def save(self, name: str, text: str) -> None:
        """Write a file of the folder."""
        new = self.path / f".{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(self.path / name)

    def models(self, **routes: Mapping[str, object]) -> None:
        """Write models.yaml: `models(chat={"local": url, "remote": url})`; JSON is YAML."""
        models = [{"id": model, "route": entries(route)} for model, route in routes.items()]
        self.save("models.yaml", json.dumps({"models": models}, indent=1))

    def routing(self, **fields: object) -> None:
        """Write routing.yaml: these fields; unless they say otherwise, the log goes to `log`, and boxes have time."""
        logging = {"output": str(self.log)} | dict(_mapping(fields.pop("logging", {})))
        self.save("routing.yaml", json.dumps({"logging": logging, "timeout": PATIENCE, **fields}, indent=1))

    def waiting_strategy(self) -> Path:
        """Write the strategy `waiting:Waiting` beside the folder: its import waits for a FIFO, which comes back."""
        fifo = self.path.parent / "awaited"
        os.mkfifo(fifo)
        source = (
            f"with open({str(fifo)!r}) as awaited: awaited.read()\n"
            "class Waiting:\n def assign(self, local, remote): return {local[0]: 1}\n"
        )
        (self.path.parent / "waiting.py").write_text(source, encoding="utf-8")
        return fifo

    def records(self, event: str | None = None, log: Path | None = None) -> list[dict[str, Any]]:
        """Read the whole lines of the log, or those that are of one event."""
        return [record for record in whole_lines(log or self.log) if event in {None, record["event"]}]


def whole_lines(log: Path) -> list[dict[str, Any]]:
    """Read a log that is being written: of a line whose writing is under way, the beginning may be there already."""
    lines = log.read_bytes().rpartition(b"\n")[0].splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def entries(route: Mapping[str, object]) -> list[dict[str, object]]:
    """Write a route: by name a URL, or all fields of an entry."""
    return [
        {"name": name, "kind": "vllm", **(dict(_mapping(given)) if isinstance(given, Mapping) else {"base_url": given})}
        for name, given in route.items()
    ]


def split(urls: list[str], *models: str) -> list[dict[str, object]]:
    """Write a group of routing.yaml."""
    return [{"endpoint": url, "models": list(models)} for url in urls]


def _mapping(given: object) -> Mapping[str, object]:
    assert isinstance(given, Mapping)
    return given


async def open_door(options: Options, listen: Listen) -> Door:
    """Start a gateway in this process, and listen."""
    door = Door(options)
    await door.open(listen)
    return door


async def until(holds: Callable[[], Awaitable[object] | object], patience: float = PATIENCE) -> None:
    """Wait until `holds`, a function or a coroutine function, gives something true."""
    try:
        async with asyncio.timeout(patience):
            while True:
                answer = holds()
                if await answer if isinstance(answer, Awaitable) else answer:
                    return
                await asyncio.sleep(_INTERVAL)
    except TimeoutError as error:
        raise AssertionError("the condition did not come true") from error


async def becomes(get: Callable[[], Awaitable[object]], expected: object) -> None:
    """Wait until what `get` gives equals `expected`."""
    found: list[object] = []

    async def equals() -> bool:
        found.append(await get())
        return found[-1] == expected

    try:
        await until(equals)
    except AssertionError as error:
        raise AssertionError(f"found {found[-1]!r}, and it did not become {expected!r}") from error


async def hold(fifo: Path) -> int:
    """Wait until a FIFO is read, and keep its reader waiting; give the descriptor that does."""
    held: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            held.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(held)

    await until(is_read, START_PATIENCE)
    return held[0]


class Process:
    """`python -m gateway ARGUMENTS` in a process of its own, `async with`; `environ` is added to this one's.

    What it has said by now is in `stdout` and `stderr`.
    """

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.stdout = ""
        self.stderr = ""
        self._arguments = arguments
        inherited = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
        self._environ = inherited | {"PYTHONPATH": str(_ROOT)} | dict(environ or {})
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "gateway", *self._arguments),
            env=self._environ,
            cwd=self._cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
        self._readers = [asyncio.create_task(self._read("stdout")), asyncio.create_task(self._read("stderr"))]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not started"
        return self._process

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def said(self, pattern: str, stream: str = "stderr") -> re.Match[str]:
        """Wait until it has said something that matches."""
        await until(
            lambda: re.search(pattern, getattr(self, stream)) or self.process.returncode is not None, START_PATIENCE
        )
        match = re.search(pattern, getattr(self, stream))
        assert match, f"ended without saying {pattern!r}: {self.stdout}{self.stderr}"
        return match

    async def url(self) -> str:
        """Wait until it serves, and say where."""
        return (await self.said(r"gateway: (?:serving )?on (http://\S+?)[, ]"))[1]

    async def ended(self) -> int:
        """Wait until it has ended; give its exit code."""
        async with asyncio.timeout(START_PATIENCE):
            await asyncio.gather(*self._readers)
            return await self.process.wait()

    async def _read(self, stream: str) -> None:
        reader = getattr(self.process, stream)
        while data := await reader.read(65_536):
            setattr(self, stream, getattr(self, stream) + data.decode())
