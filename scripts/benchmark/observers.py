"""The cost of observing requests: the process that `scripts/bench observers` measures.

It makes the Outcomes of requests that never happened, at an even pace, and hands them to the observers of a gateway
that is wired as usual but serves nobody. CPU is that of the whole process, the threads that write log and ledger
included, until everything is written; the cost of making the Outcomes and keeping the pace is measured alone and
subtracted.

Usage: python -m scripts.benchmark.observers SECONDS; it prints one JSON object.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, Literal

import uvloop

from gateway.execution.executor import Executor
from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.heap import settle
from gateway.server import Gateway, Options
from scripts.benchmark.configurations import usual
from scripts.benchmark.table import per

Kind = Literal["JSON", "stream"]
KINDS: Final[tuple[Kind, ...]] = ("JSON", "stream")
NOBODY: Final = "nobody: made, at this pace"
EVERYBODY: Final = "everybody"
BESIDE: Final = "everybody beside the log"
_COUNTERS: Final = ("traffic", "live", "costs", "ledger", "metrics")
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    NOBODY: (),
    "log": ("log",),
    **{name: (name,) for name in _COUNTERS if name != "ledger"},
    "costs and ledger": ("costs", "ledger"),
    EVERYBODY: ("log", *_COUNTERS),
}
_RATE: Final = 5_000
_TICK: Final = 0.004
_SLICE: Final = 0.5
_PRICES: Final = {"prompt": "0.0000006", "completion": "0.0000012"}


def outcome(number: int, kind: Kind) -> Outcome:
    """Make the Outcome of a request that one attempt answered: one in two is local, the others are remote."""
    name = "local" if number % 2 else "remote"
    duration = 800.0 + number % 997 / 7
    is_stream = kind == "stream"
    attempt = Attempt("m", name, name, duration - 0.5, 200, offset=0.02)
    return Outcome(
        f"505991a797a443a19a06{number:012x}",
        "chat/completions",
        "m",
        "m",
        1,
        is_stream,
        200,
        (attempt,),
        False,  # noqa: FBT003 - by position, as it costs least
        duration,
        612,
        30.0 + number % 91 if is_stream else duration - 0.1,
        Usage(20 + number % 17, 64),
        None,
        "m",
    )


class Measured:
    """A gateway without a listener, in a folder of its own; `figures` are microseconds of CPU per request, by slice.

    The first of each pair is the whole process's, the second that of the event loop's thread alone.
    """

    def __init__(self, folder: Path, chosen: Sequence[str]) -> None:
        """Wire it, with only the chosen observers."""
        (folder / "config").mkdir(parents=True)
        models, routing = usual(9)
        models = [each | {"pricing": _PRICES} for each in models]
        more = {"logging": {"output": str(folder / "log")}, "ledger": {"url": f"sqlite:///{folder / 'ledger.db'}"}}
        (folder / "config" / "models.yaml").write_text(json.dumps({"models": models}), encoding="utf-8")
        (folder / "config" / "routing.yaml").write_text(json.dumps({**routing, **more}), encoding="utf-8")
        self.figures: list[tuple[float, float]] = []
        self._gateway = gateway = Gateway(Options(folder / "config", environ={}))
        gateway.tidy = settle
        takers = {"log": gateway.request_log.take, **{name: getattr(gateway, name).take for name in _COUNTERS}}
        gateway.feed.takers = tuple(take for name, take in takers.items() if name in chosen)
        self._tell = Executor(
            upstream=gateway.upstream,
            selector=gateway.selector,
            manager=gateway.manager,
            observers=(gateway.feed.put,) if chosen else (),
            changed=lambda _: None,
            clock=time.monotonic,
            dice=lambda: 0.5,
        ).tell

    async def start(self) -> None:
        """Read the configuration, and start writing."""
        await self._gateway.reloader.load()
        assert not self._gateway.state.faults, self._gateway.state.faults  # noqa: S101 - our own files
        self._gateway.sink.start()

    async def slice(self, kind: Kind) -> None:
        """Hand over requests for a while, and wait until everything is written."""
        gateway, clock = self._gateway, asyncio.get_running_loop().time
        ticks, each = round(_SLICE / _TICK), round(_RATE * _TICK)
        before, on_loop, due = time.process_time(), time.thread_time(), clock()
        for tick in range(ticks):
            for number in range(each):
                self._tell(outcome(tick * each + number, kind))
            due += _TICK
            await asyncio.sleep(max(0.0, due - clock()))
        gateway.feed.settle()
        on_loop = time.thread_time() - on_loop
        await asyncio.to_thread(gateway.ledger.flush, 10.0)
        await asyncio.to_thread(gateway.sink.flush, 10.0)
        spent = time.process_time() - before
        self.figures.append((per(spent, ticks * each), per(on_loop, ticks * each)))
        assert gateway.sink.dropped + gateway.ledger.dropped == 0  # noqa: S101 - the pace is slow enough

    async def close(self) -> None:
        """Stop writing."""
        await asyncio.to_thread(self._gateway.ledger.close, 5.0)
        await asyncio.to_thread(self._gateway.sink.close, 5.0)


async def measured(folder: Path, kind: Kind, seconds: float) -> list[dict[str, float]]:
    """Measure every choice, taking turns, for so many seconds each; a busy moment does not spoil the medians."""
    gateways = {name: Measured(folder / name, chosen) for name, chosen in _CHOICES.items()}
    for gateway in gateways.values():
        await gateway.start()
    for _ in range(1 + max(1, round(seconds / _SLICE))):
        for gateway in gateways.values():
            await gateway.slice(kind)
    for gateway in gateways.values():
        await gateway.close()
    slices = {name: gateway.figures[1:] for name, gateway in gateways.items()}
    return [beyond({name: median(each[which] for each in taken) for name, taken in slices.items()}) for which in (0, 1)]


def beyond(figures: Mapping[str, float]) -> dict[str, float]:
    """Subtract the cost of making the Outcomes; add what all observers together cost beyond the log."""
    nobody = figures[NOBODY]
    more = {name: figure - nobody for name, figure in figures.items() if name != NOBODY}
    return {NOBODY: nobody, **more, BESIDE: more[EVERYBODY] - more["log"]}


def main(seconds: float) -> None:
    """Print the microseconds by choice and kind."""
    rows: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        with TemporaryDirectory(prefix="gateway-observers-") as folder:
            found = uvloop.run(measured(Path(folder), kind, seconds))
        for column, figures in zip((f"CPU us/{kind}", "on the loop"), found, strict=True):
            for name, figure in figures.items():
                rows.setdefault(name, {})[f"{column} ({kind})" if column == "on the loop" else column] = figure
    print(json.dumps(rows))


if __name__ == "__main__":
    main(float(sys.argv[1]))
