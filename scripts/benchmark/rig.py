"""Starts what is measured and what measures it, and reads the clocks."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from scripts.benchmark.peers import Peer, Start, gateway
from scripts.benchmark.process import Cores, DiedError, Server, reserved_port, running, wait_until_served

HELPERS: Final = ("upstream", "load")
_SOURCES: Final = Path(__file__).parent
_ROOT: Final = _SOURCES.parents[1]
_AS_INSTALLED: Final = {"PYTHONDONTWRITEBYTECODE": ""}
"""The gateway may cache its bytecode, as an installed one does."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long each part of a measure runs, in seconds, and how often the whole is repeated."""

    warm_up: float
    seconds: float
    rounds: int
    large: bool
    """Whether to measure with the large configurations, and all peers in everything."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the load saw, and what the server used meanwhile. Times are in seconds, in histograms in microseconds."""

    seconds: float
    answers: int
    events: int
    errors: int
    latency: Mapping[str, int]
    first_event: Mapping[str, int]
    gap: Mapping[str, int]
    cpu: float
    resident: int


def build_helpers(folder: Path) -> None:
    """Compile the upstream and the load.

    Raises:
        subprocess.CalledProcessError: the compiler rejects them.
        FileNotFoundError: there is no compiler.

    """
    for name in HELPERS:
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(folder / name), str(_SOURCES / f"{name}.c")]
        subprocess.run(command, check=True)  # noqa: S603 - our own sources


def request(model: str = "m", *, stream: bool = False, padding: int = 0) -> str:
    """Return a request's body; `padding` adds a picture of so many bytes."""
    text = "Write a haiku about a load balancer that never sleeps."
    content: object = text
    if padding:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * padding}}
        content = [{"type": "text", "text": text}, picture]
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}], "max_tokens": 64}
    return json.dumps(body)


@dataclass(slots=True)
class Load:
    """A load under way."""

    process: "subprocess.Popen[str]"
    server: Server
    output: Path

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def finish(self) -> Loaded:
        """Wait for the end of the warm-up, then of the load; return what it saw."""
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        self.process.stdout.readline()
        before, resident = self.server.cpu(), self.server.resident()
        line = self.process.stdout.readline()
        cpu = self.server.cpu() - before
        if not line:
            raise DiedError(f"the load ended with {self.process.wait()}: {self.output.read_text(encoding='utf-8')}")
        seen: dict[str, Any] = json.loads(line)
        figures = {
            name: seen[name] for name in ("seconds", "answers", "events", "errors", "latency", "first_event", "gap")
        }
        return Loaded(**figures, cpu=cpu, resident=resident)


@dataclass(slots=True)
class Rig:
    """Where the bench works. `flags` and `routing` are the user's, and are for the gateway only."""

    folder: Path
    cores: Cores
    pace: Pace
    peers: tuple[Peer, ...]
    flags: tuple[str, ...] = ()
    routing: Mapping[str, object] = field(default_factory=dict)

    @contextmanager
    def upstream(self, *, body: int = 600, tokens: int = 200, interval: float = 0.02) -> Iterator[int]:
        """Run the upstream; yield its port."""
        arguments = [str(number) for number in (0, body, tokens, round(interval * 1e6))]
        command = [str(self.folder / "upstream"), *arguments]
        with running(command, self.cores.load, self.folder, heard=True) as process:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            yield int(process.stdout.readline())

    @contextmanager
    def gateway(self, models: object, routing: Mapping[str, object], body: str | None = None) -> Iterator[Server]:
        """Run the gateway with this configuration, and everything turned on."""
        folder = self._new_folder()
        everything = {
            "health_check": 10,
            "logging": {"output": "output.log"},
            "ledger": {"url": "sqlite:///ledger.db"},
            **routing,
            **self.routing,
        }
        with reserved_port() as port:
            start = gateway(models, everything, self.flags, port, folder)
            with self._started(start, port, folder, body or request()) as server:
                yield server

    @contextmanager
    def peer(self, peer: Peer, upstream: int) -> Iterator[Server]:
        """Run one of the peers."""
        folder = self._new_folder()
        with (
            reserved_port() as port,
            self._started(peer.start(port, upstream, folder), port, folder, request()) as server,
        ):
            yield server

    @contextmanager
    def load(
        self,
        server: Server,
        body: str,
        *,
        connections: int,
        rate: float = 0,
        warm_up: float | None = None,
        seconds: float | None = None,
    ) -> Iterator[Load]:
        """Run the load; `rate` is in requests per second, 0 for as many as are answered."""
        file = self.folder / "body"
        file.write_text(body, encoding="utf-8")
        lasts = (self.pace.warm_up if warm_up is None else warm_up, seconds or self.pace.seconds)
        numbers = [str(number) for number in (server.port, connections, *lasts, rate)]
        command = [str(self.folder / "load"), *numbers, str(file)]
        with running(command, self.cores.load, self.folder, heard=True) as process:
            yield Load(process, server, self.folder / "output")

    def loaded(self, server: Server, body: str, **how: Any) -> Loaded:  # noqa: ANN401 - as `load`'s
        """Run the load to its end."""
        with self.load(server, body, **how) as load:
            return load.finish()

    @contextmanager
    def _started(self, start: Start, port: int, folder: Path, body: str) -> Iterator[Server]:
        for name, text in start.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        environ = {**_AS_INSTALLED, "PYTHONPATH": str(_ROOT)}
        with running(start.command, self.cores.measured, folder, environ) as process:
            wait_until_served(process, port, folder, body.encode())
            yield Server(process.pid, port, folder)

    def _new_folder(self) -> Path:
        return Path(mkdtemp(dir=self.folder))
