"""`gateway serve | check | stats | demo`: arguments and output.

Exit codes: 0, 1 when something is wrong with the configuration or the address, 2 when the command is used wrongly.
`serve` prints to stderr, because stdout may be the log.
"""

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypeVar

from gateway import __version__
from gateway.api.body import Limits
from gateway.api.cors import origins
from gateway.asking import UnreachableError, default_url, is_url
from gateway.capacity import open_files, shortfall
from gateway.check import check
from gateway.config.schema import schema
from gateway.config.shown import shortened
from gateway.config.sources import ConfigFiles
from gateway.execution.upstream import TRANSPORTS, Transport
from gateway.lifecycle import CannotServeError, Door, Listen, run, serve
from gateway.listener import reachable
from gateway.observe.target import STREAMS, has_room
from gateway.server import Options
from gateway.stats import fetch, table

T = TypeVar("T")

_UNWRITABLE: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE: Final = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `arguments` default to the process's own.

    The working directory goes to the end of `sys.path`: a user's own strategies are found there, and nothing in it
    shadows a library.
    """
    with suppress(FileNotFoundError):  # a removed directory contains no strategy
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
    try:
        parsed = _parser(os.environ).parse_args(arguments)
        code = int(parsed.run(parsed))
        if sys.__stdout__ is not None:
            sys.stdout.flush()  # a closed pipe raises here, not at the interpreter's exit
        return code  # noqa: TRY300 - the flush may fail, so it is inside
    except (CannotServeError, UnreachableError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards what is still buffered
        if error.errno != errno.EPIPE:
            _tell(f"gateway: cannot write: {os.strerror(error.errno).lower()}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def size(text: str) -> int:
    """Parse a number of bytes: `33554432`, `32MiB`, `32m`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 32MiB")
    return int(match[1]) * _UNITS[match[2].lower()]


def port(text: str) -> int:
    """Parse a port number; 0 means a free one."""
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:  # noqa: PLR2004 - RFC 9293 3.1: 16 bits
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a port from 0 to 65535")
    return int(text)


def count(text: str) -> int:
    """Parse a number of connections, at least 1."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """Parse a time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds, at least 0")
    return value


def url(text: str) -> str:
    """Parse a gateway's address."""
    if not is_url(text):
        raise argparse.ArgumentTypeError(
            f"found {shortened(text)!r}, expected an address such as http://127.0.0.1:8080"
        )
    return text


def transport(text: str) -> Transport:
    """Parse the name of a transport."""
    if text not in TRANSPORTS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected one of: {', '.join(TRANSPORTS)}")
    return TRANSPORTS[TRANSPORTS.index(text)]


def cors_origins(text: str) -> frozenset[str]:
    """Parse the origins whose pages may send requests."""
    try:
        return origins(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Value(str):
    """A flag's value that comes from an environment variable."""

    __slots__ = ("variable",)
    variable: str

    def __new__(cls, text: str, variable: str) -> Self:
        value = super().__new__(cls, text)
        value.variable = variable
        return value


def _named(reads: Callable[[str], T]) -> Callable[[str], T]:
    """Make the errors of a parser name the variable that the value came from."""

    def read_named(text: str) -> T:
        try:
            return reads(text)
        except argparse.ArgumentTypeError as error:
            place = f"{text.variable}: " if isinstance(text, _Value) else ""
            raise argparse.ArgumentTypeError(f"{place}{error}") from None

    return read_named


class _Flags:
    """Adds flags that each have an environment variable; the flag wins, then the variables in their order."""

    def __init__(self, parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
        self._parser = parser
        self._environ = environ

    def add(
        self, flag: str, *variables: str, reads: Callable[[str], object], told: str, default: str | None = None
    ) -> None:
        given = (_Value(self._environ[name], name) for name in variables if self._environ.get(name))
        shown = f"{told} [{', '.join(variables)}{f'; {default}' if default else ''}]"
        self._parser.add_argument(flag, default=next(given, default), type=_named(reads), help=shown)

    def config(self) -> None:
        told = "the folder of models.yaml and routing.yaml"
        self.add("--config-dir", "GATEWAY_CONFIG_DIR", reads=Path, told=told, default="config")
        told = "a file of variables, by default .env beside the folder"
        self.add("--env-file", "GATEWAY_ENV_FILE", reads=Path, told=told)

    def listen(self) -> None:
        self.add(
            "--host",
            "GATEWAY_HOST",
            reads=str,
            told="the address to listen on, or several, separated by commas",
            default="127.0.0.1",
        )
        told = "the port to listen on, 0 for a free one"
        self.add("--port", "GATEWAY_PORT", "PORT", reads=port, told=told, default="8080")
        self.add("--max-body", "GATEWAY_MAX_BODY", reads=size, told="the largest request body", default="32MiB")
        told = "the most connections of clients, by default what the limit of open files allows"
        self.add("--max-connections", "GATEWAY_MAX_CONNECTIONS", reads=count, told=told)
        told = "seconds that requests in flight may go on after the signal to stop"
        self.add("--drain-timeout", "GATEWAY_DRAIN_TIMEOUT", reads=seconds, told=told, default="30")

    def clients(self) -> None:
        told = "seconds that an idle connection of a client is kept: longer than a proxy in front keeps its own"
        self.add("--keep-alive", "GATEWAY_KEEP_ALIVE", reads=seconds, told=told, default="75")
        told = "origins whose pages may send requests from a browser, separated by commas, or *; by default none"
        self.add("--cors-origins", "GATEWAY_CORS_ORIGINS", reads=cors_origins, told=told)

    def transport(self) -> None:
        told = "how requests are passed on: direct, or session (slower, by aiohttp's own handlers)"
        self.add("--transport", "GATEWAY_TRANSPORT", reads=transport, told=told, default="direct")


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway",
        description="Splits LLM traffic between your own GPU boxes and remote providers, and fails over between them.",
    )
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="serve | check | stats | demo")

    def command(name: str, does: Callable[[argparse.Namespace], int], told: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=told, description=told)
        added.set_defaults(run=does)
        return added

    serving = _Flags(command("serve", _serve, "serve, and follow the configuration as it is edited"), environ)
    serving.config()
    serving.listen()
    serving.clients()
    serving.transport()
    checking = command(
        "check", _check, "read the configuration as `serve` would, print faults or each deployment's share"
    )
    flags = _Flags(checking, environ)
    flags.config()
    checking.add_argument("--diff", action="store_true", help="print what saving it would change in a running gateway")
    told = "where that gateway is, by default where `serve` would be reached in the same environment"
    flags.add("--url", "GATEWAY_URL", reads=url, told=told)
    checking.add_argument("--json", action="store_true", help="print JSON")
    checking.add_argument("--schema", choices=("models", "routing"), help="print the JSON Schema of a file instead")
    asking = command("stats", _stats, "print a summary of a running gateway's ledger")
    told = "where the gateway is, by default where `serve` would be reached in the same environment"
    _Flags(asking, environ).add("--url", "GATEWAY_URL", reads=url, told=told)
    asking.add_argument("--hours", default="24", help="how far to look back [default: 24]")
    asking.add_argument("--model", help="only requests for this model")
    asking.add_argument("--deployment", help="only requests that this deployment answered")
    asking.add_argument("--client", help="only this client's requests")
    asking.add_argument("--json", action="store_true", help="print JSON")
    trying = command("demo", _demo, "serve three simulated boxes, and print commands to try")
    _Flags(trying, environ).listen()
    trying.add_argument("--dir", type=Path, help="where to write the demo's configuration, by default a new folder")
    trying.add_argument("--chaos", action="store_true", help="add a model for each fault that a box can have")
    return parser


def _listen(arguments: argparse.Namespace) -> Listen:
    return Listen(arguments.host, arguments.port, arguments.drain_timeout, arguments.max_connections)


def _serve(arguments: argparse.Namespace) -> int:
    limits = Limits(body=arguments.max_body)
    options = Options(
        arguments.config_dir,
        arguments.env_file,
        limits,
        transport=arguments.transport,
        cors_origins=arguments.cors_origins or frozenset(),
        keep_alive=arguments.keep_alive,
    )
    run(serve(options, _listen(arguments), _announce))
    return 0


async def _announce(door: Door) -> None:
    """Print where it serves, and what is wrong with its configuration."""
    state, snapshot = door.gateway.state, door.gateway.manager.snapshot
    lines = [*map(str, state.faults), *(f"warning: {notice}" for notice in state.notices)]
    if (few := shortfall(door.capacity.bounds.limit, open_files())) is not None:
        lines.append(f"warning: {few}")
    if snapshot is not None and snapshot.settings.clients is None and not door.listener.is_private:
        lines.append("warning: anyone who reaches this port can use the models: routing.yaml's `clients` limits that")
    where = ", ".join(door.urls)
    if snapshot is None:
        lines.append(f"gateway: on {where} without a configuration: it answers 503 until the faults are fixed")
    else:
        page = f"{reachable(door.urls[0])}/"
        lines.append(f"gateway: serving on {where}, page: {page}, log: {snapshot.settings.log_output}")
    _tell("\n".join([*lines, ""]))


def _tell(text: str) -> None:
    """Write to stderr in one call, as the log may be there too. Serving goes on if that fails."""
    with suppress(OSError):
        if has_room(STREAMS["stderr"], 0):
            os.write(STREAMS["stderr"], text.encode(errors="backslashreplace"))


def _demo(arguments: argparse.Namespace) -> int:
    from gateway.demo import demo  # noqa: PLC0415 - the simulator, which `serve` does not need

    run(demo(_listen(arguments), Limits(body=arguments.max_body), arguments.dir, chaos=arguments.chaos))
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    question = {name: getattr(arguments, name) for name in ("hours", "model", "deployment", "client")}
    answer = fetch(arguments.url or default_url(os.environ), question)
    print(json.dumps(answer, indent=2) if arguments.json else table(answer))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        print(json.dumps(schema(arguments.schema), indent=2))
        return 0
    files = ConfigFiles.of(arguments.config_dir, dict(os.environ), arguments.env_file)
    against = (arguments.url or default_url(os.environ)) if arguments.diff else None
    return check(files, os.environ, against=against, as_data=arguments.json)
