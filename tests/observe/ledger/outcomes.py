"""Outcomes, settings and servers for the ledger's tests."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace
from pydantic import SecretStr

from gateway.config.ledger_place import Place
from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.cost import Cost
from gateway.observe.ledger.rows import Rows, id_of
from gateway.observe.ledger.rows import rows as made
from gateway.routing.snapshot import LedgerSettings

ANSWERED: Final = Attempt("llama", "near", "local", 12.5, 200)
PLAIN: Final = Outcome(
    request_id="r-1",
    operation="chat/completions",
    model="llama",
    model_id="llama",
    served_model="llama",
    generation=1,
    stream=False,
    status=200,
    attempts=(ANSWERED,),
    fallback=False,
    duration=12.5,
    first_content=10.0,
    usage=Usage(10, 20),
)
_PASSWORD: Final = "a canary/password"
_BINARIES: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def outcome(number: int = 1) -> Outcome:
    return replace(PLAIN, request_id=f"r-{number}")


def batch(*numbers: int, at: float = 1_000.0) -> Batch:
    """Make a batch of requests that cost 5 and avoid 7 each; what `r-0` costs is unknown."""
    made = Batch([at] * len(numbers), [outcome(number) for number in numbers])
    for alike in (*made.alike, *made.mixed):
        alike.spent = [None if name == "r-0" else 5 for name in alike.ids]
        alike.avoided = [None if name == "r-0" else 7 for name in alike.ids]
    made.odd_costs = [None if each.request_id == "r-0" else Cost(5, 7) for _, each in made.odd]
    return made


def rows(*numbers: int, run: int = 1, at: float = 1_000.0) -> list[Rows]:
    """Make a row for each number, which is its request's, too."""
    return [each for number in numbers for each in made(run, number, batch(number, at=at), id_of(at) + number)]


def sqlite_at(path: Path, days: float = 0.0) -> LedgerSettings:
    return LedgerSettings(Place.of(f"sqlite:///{path}"), days)


def find_initdb() -> Path | None:
    """Find the newest PostgreSQL server of this machine, Debian's or one on PATH; root needs somebody to run it as."""
    if os.geteuid() == 0 and shutil.which("runuser") is None:
        return None
    on_path = shutil.which("initdb")
    newest = max(_BINARIES, key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0), default=None)
    return newest or (Path(on_path) if on_path else None)


class Postgres:
    """A PostgreSQL server of its own, in `folder`, on a Unix socket; it can be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._data = folder / "data"
        self._user = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()

    def create(self) -> None:
        if self._user:
            shutil.chown(self._folder, "postgres", "postgres")
        secret = self._folder / "password"
        secret.write_text(_PASSWORD)
        secret.chmod(0o644)
        files = ("--pgdata", str(self._data), "--pwfile", str(secret))
        self._run(
            "initdb", *files, "--username", "keeper", "--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8"
        )
        (self._folder / "data" / "postgresql.auto.conf").write_text(
            f"listen_addresses = ''\nunix_socket_directories = '{self._folder}'\nfsync = off\n"
        )

    def start(self) -> None:
        self._run("pg_ctl", "--pgdata", str(self._data), "--wait", "--log", str(self._folder / "log"), "start")

    def stop(self) -> None:
        self._run("pg_ctl", "--pgdata", str(self._data), "--wait", "--mode", "immediate", "stop")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://keeper:a%20canary%2Fpassword@/{database}?host={self._folder}"

    def place(self, database: str = "postgres") -> Place:
        return Place.of(self.url(database))

    def secret(self, database: str = "postgres") -> SecretStr:
        return SecretStr(self.url(database))

    def _run(self, program: str, *arguments: str) -> None:
        command = (*self._user, str(self._binaries / program), *arguments)
        capture = program == "initdb"  # a server that is started would hold a pipe open
        subprocess.run(command, check=True, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=capture)  # noqa: S603 - PostgreSQL's own programs


@contextmanager
def postgres_server(binaries: Path) -> Iterator[Postgres]:
    """Run a server; its folder has a short name, for a socket's path is bounded."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Postgres(binaries, folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
