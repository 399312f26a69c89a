"""`scripts/bench`: measure, and print the table."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from gateway import __version__
from scripts.benchmark.measures import MEASURES
from scripts.benchmark.peers import PEERS, Peer, package
from scripts.benchmark.process import Cores, DiedError
from scripts.benchmark.rig import Pace, Rig, build_helpers
from scripts.benchmark.table import Measure, medians, render, with_ratio

QUICK: Final = Pace(warm_up=0.5, seconds=2.0, rounds=1, large=False)
FULL: Final = Pace(warm_up=1.0, seconds=5.0, rounds=3, large=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = _parser().parse_args(arguments)
    cores = Cores.available()
    os.sched_setaffinity(0, {cores.load})
    peers = tuple(peer for peer in PEERS if peer.is_here() and peer.name not in given.without)
    pace = _pace(given)
    with TemporaryDirectory(prefix="gateway-bench-") as folder:
        try:
            build_helpers(Path(folder))
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            print(f"bench: a C compiler named cc is wanted: {error}", file=sys.stderr)
            return 1
        rig = Rig(Path(folder), cores, pace, peers, tuple(given.gateway_flag), given.routing)
        rig.peers = peers = tuple(peer for peer in peers if _serves(rig, peer))
        try:
            found = [_measured(rig, name) for name in given.measures or MEASURES]
        except DiedError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    ended = _circumstances(pace, cores, peers)
    print("\n".join(ended))
    if given.json:
        sections = [{"name": m.name, "title": m.title, "rows": m.rows} for m in found]
        given.json.write_text(json.dumps({"measures": sections, "circumstances": ended}, indent=1), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Measure the gateway beside its peers, on this machine.")
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], metavar="measure", help=", ".join(MEASURES))
    parser.add_argument("--quick", action="store_true", help="2 to 3 minutes: short, one round, smaller, fewer peers")
    parser.add_argument("--rounds", type=int, help=f"how often; the medians are shown [{FULL.rounds}; quick: 1]")
    parser.add_argument(
        "--seconds", type=float, help=f"how long each part lasts [{FULL.seconds}; quick: {QUICK.seconds}]"
    )
    parser.add_argument("--without", action="append", default=[], metavar="PEER", help="leave a peer out")
    parser.add_argument("--gateway-flag", action="append", default=[], metavar="FLAG", help="add to `gateway serve`")
    parser.add_argument("--routing", type=_mapping, default={}, metavar="JSON", help="add fields to its routing.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def _mapping(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a JSON object")
    return read


def _pace(given: argparse.Namespace) -> Pace:
    pace = QUICK if given.quick else FULL
    return Pace(pace.warm_up, given.seconds or pace.seconds, given.rounds or pace.rounds, pace.large)


def _serves(rig: Rig, peer: Peer) -> bool:
    """Return whether a peer starts here; if not, print that it is left out."""
    try:
        with rig.upstream() as upstream, rig.peer(peer, upstream):
            return True
    except DiedError as error:
        print(f"bench: {peer.name} is left out, it does not serve: {error}", file=sys.stderr)
        return False


def _measured(rig: Rig, name: str) -> Measure:
    """Measure, and print the result at once, because the whole run takes a while."""
    found = with_ratio(medians([MEASURES[name](rig) for _ in range(rig.pace.rounds)]))
    print(render(found), end="\n\n", flush=True)
    return found


def _circumstances(pace: Pace, cores: Cores, peers: Sequence[Peer]) -> list[str]:
    """Return what was measured, when, and on what."""
    where = "one core for all" if cores.measured == cores.load else f"core {cores.measured}, the load on {cores.load}"
    names = ["aiohttp", "uvloop", "msgspec"]
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, medians of {pace.rounds}, {pace.seconds:g} s each, on {where}",
        f"gateway {__version__}, {', '.join(map(package, names))}, Python {platform.python_version()}",
        *(peer.says() for peer in peers if peer.name != "bare aiohttp"),
        f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release()}",
        f"load average {os.getloadavg()[0]:.1f} at the end",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
