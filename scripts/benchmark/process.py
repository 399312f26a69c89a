"""Processes, each pinned to a core, and what they cost according to the system (Linux's /proc)."""

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PATIENCE: Final = 120.0
_POLL: Final = 0.002
_ASK: Final = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'


@dataclass(frozen=True, slots=True)
class Cores:
    """The core that is measured, and the one for the load, the upstream and the bench itself. They may be the same."""

    measured: int
    load: int

    @classmethod
    def available(cls) -> "Cores":
        """Take the last and the first core that this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[-1], cores[0])


class DiedError(Exception):
    """A process that should serve has ended or does not answer; the message is its output."""


@dataclass(frozen=True, slots=True)
class Server:
    """A process that listens on a port, and the folder it works in."""

    pid: int
    port: int
    folder: Path

    def cpu(self) -> float:
        """Return the CPU seconds of it and its children, user and system."""
        return sum(_cpu(pid) for pid in _family(self.pid))

    def resident(self) -> int:
        """Return the bytes of memory that it and its children hold."""
        return sum(_memory(pid, "VmRSS") for pid in _family(self.pid))

    def peak(self) -> int:
        """Return the most bytes of memory that it and its children have held since `forget_peak`."""
        return sum(_memory(pid, "VmHWM") for pid in _family(self.pid))

    def forget_peak(self) -> None:
        """Reset the peak (proc(5), clear_refs)."""
        for pid in _family(self.pid):
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that nobody listens on.

    Meanwhile the system gives it to nobody who asks for any port, but a server that sets SO_REUSEADDR can listen on it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], core: int, folder: Path, environ: dict[str, str] | None = None, *, heard: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Run a command on a core, with its output in `folder`/output; kill it at the end.

    If it is `heard`, the caller reads its standard output.
    """
    pinned = ["taskset", "--cpu-list", str(core), *command]
    with (folder / "output").open("a", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603 - the bench's own commands
            pinned,
            stdout=subprocess.PIPE if heard else output,
            stderr=output,
            text=True,
            cwd=folder,
            env={**os.environ, **(environ or {})},
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def wait_until_served(process: "subprocess.Popen[str]", port: int, folder: Path, body: bytes = _ASK) -> float:
    """Wait until a request is answered with 200; return that moment on the monotonic clock."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == http.HTTPStatus.OK:
                connection.close()
                return time.monotonic()
        connection.close()
        time.sleep(_POLL)
    raise DiedError((folder / "output").read_text(encoding="utf-8")[-2000:] or "it did not answer")


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
