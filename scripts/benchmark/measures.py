"""What is measured. Each function takes the rig and returns a section of the table."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Final

from scripts.benchmark.configurations import Configuration, many, renamed, usual
from scripts.benchmark.process import Server
from scripts.benchmark.rig import Load, Rig, request
from scripts.benchmark.table import Measure, per

Rows = dict[str, Mapping[str, float]]

_GATEWAY: Final = "gateway"
_INTERVAL: Final = 0.02
_TOKENS: Final = 200
_BODY: Final = 8 << 20
_POLL: Final = 0.02
_RATE: Final = 500.0
_CLIENTS: Final = 32
_SELDOM: Final = 1000
"""Seconds between two probes: more than a measure takes."""


@contextmanager
def _usual(rig: Rig, upstream: int) -> Iterator[Server]:
    with rig.gateway(*usual(upstream)) as server:
        yield server


def _everyone(rig: Rig, upstream: int, measure: Callable[[Server], Mapping[str, float]], *, peers: bool = True) -> Rows:
    """Measure the gateway and each peer, one after the other."""
    rows: Rows = {}
    with _usual(rig, upstream) as server:
        rows[_GATEWAY] = measure(server)
    for peer in rig.peers if peers else ():
        with rig.peer(peer, upstream) as server:
            rows[peer.name] = measure(server)
    return rows


def json_answers(rig: Rig) -> Measure:
    """Ask for JSON answers of 600 bytes as fast as they come."""

    def measure(server: Server) -> dict[str, float]:
        seen = rig.loaded(server, request(), connections=_CLIENTS)
        return {
            "CPU us/request": per(seen.cpu, seen.answers),
            "requests/s": seen.answers / seen.seconds,
            "errors": seen.errors,
        }

    with rig.upstream() as upstream:
        rows = _everyone(rig, upstream, measure)
    return Measure("json", "600-byte JSON answers, 32 keep-alive connections", rows, "CPU us/request")


def stream_chunks(rig: Rig) -> Measure:
    """Hold 400 streams, with one chunk every 20 ms."""
    rows = _streams(rig, 400)
    return Measure("stream", "400 streams, one chunk each 20 ms", rows, "CPU us/chunk")


def thousand_streams(rig: Rig) -> Measure:
    """Hold 1,000 streams on one core."""
    rows = _streams(rig, 1000, peers=rig.pace.large)
    return Measure("thousand", "1,000 streams of 50 tokens/s", rows, "CPU us/chunk")


def _streams(rig: Rig, streams: int, *, peers: bool = True) -> Rows:
    """Measure streams. Besides its tokens, each has events for the role, the end and [DONE].

    They start one after the other over the duration of one, so that at any moment as many start as end.
    """
    length = _TOKENS * _INTERVAL
    expected = streams * (_TOKENS + 3) / length

    def measure(server: Server) -> dict[str, float]:
        seen = rig.loaded(server, request(stream=True), connections=streams, warm_up=2 * length)
        return {
            "CPU us/chunk": per(seen.cpu, seen.events),
            "served %": 100 * seen.events / seen.seconds / expected,
            "gap p50 ms": seen.gap["p50"] / 1000,
            "gap p99 ms": seen.gap["p99"] / 1000,
            "chunks/read": seen.events / max(1, seen.gap["count"] + seen.first_event["count"]),
            "core %": 100 * seen.cpu / seen.seconds,
            "errors": seen.errors,
        }

    with rig.upstream(tokens=_TOKENS, interval=_INTERVAL) as upstream:
        return _everyone(rig, upstream, measure, peers=peers)


def added_latency(rig: Rig) -> Measure:
    """Ask on one connection, one request after the other; ask the upstream directly before and after."""

    def measure(server: Server) -> dict[str, float]:
        direct = replace(server, port=upstream)
        how = {"connections": 1, "warm_up": 0.3, "seconds": rig.pace.seconds / 2}
        around = [rig.loaded(each, request(), **how) for each in (direct, server, direct)]
        before, through, after = (seen.latency["p50"] / 1000 for seen in around)
        p99 = around[1].latency["p99"] / 1000
        return {"added p50 ms": through - (before + after) / 2, "p50 ms": through, "p99 ms": p99}

    with rig.upstream() as upstream:
        rows = _everyone(rig, upstream, measure)
    return Measure("latency", "added latency of a JSON answer, one connection", rows)


def memory(rig: Rig) -> Measure:
    """Read resident memory at rest, and with 1,000 streams in flight, each with one event per second."""
    streams = 1000

    def measure(server: Server) -> dict[str, float]:
        rest = server.resident()
        seen = rig.loaded(server, request(stream=True), connections=streams, warm_up=4.0, seconds=1.0)
        return {"at rest MB": rest / 1e6, "KB a stream": (seen.resident - rest) / 1e3 / streams, "errors": seen.errors}

    with rig.upstream(tokens=60, interval=1.0) as upstream:
        rows = _everyone(rig, upstream, measure, peers=rig.pace.large)
    return Measure("memory", "resident memory, 1,000 streams in flight", rows)


def sizes(rig: Rig) -> Measure:
    """Ask with small and with large configurations, and time how long each takes to start.

    Endpoints are probed once: the cost of further probes grows with time and not with requests.
    """
    most = (10_000, 1000) if rig.pace.large else (1000, 100)
    shapes = [(1, 2), (most[0], 2), (1, most[1])]
    rows: Rows = {}
    with rig.upstream() as upstream:
        for models, deployments in shapes:
            began = time.monotonic()
            written, _ = many(upstream, models=models, deployments=deployments)
            with rig.gateway(written, {"health_check": _SELDOM}) as server:
                started = time.monotonic() - began
                seen = rig.loaded(server, request(), connections=_CLIENTS)
            figures = {"CPU us/request": per(seen.cpu, seen.answers), "errors": seen.errors, "start s": started}
            rows[f"{models:,} x {deployments:,}"] = figures
    return Measure("sizes", "a request by the size of the configuration, models x deployments of each", rows)


def reloads(rig: Rig) -> Measure:
    """Ask at a fixed rate while a large configuration is saved again and again."""
    models = 1000 if rig.pace.large else 200
    rows: Rows = {}
    with rig.upstream() as upstream, rig.gateway(*many(upstream, models=models, deployments=4)) as server:
        quiet = rig.loaded(server, request(), connections=8, rate=_RATE)
        with rig.load(server, request(), connections=8, rate=_RATE, seconds=max(rig.pace.seconds, 5.0)) as load:
            saves = _save_until_over(server, load, lambda n: many(upstream, models=models, deployments=4, weight=n))
            seen = load.finish()
        for name, found, count in (("no reload", quiet, 0), ("reloading", seen, saves)):
            milliseconds = {f"{key} ms": found.latency[key] / 1000 for key in ("p50", "p99", "max")}
            rows[name] = {**milliseconds, "errors": found.errors, "reloads": count}
    return Measure("reload", f"{models:,} models x 4 deployments, {_RATE:g} requests/s", rows)


def _save_until_over(server: Server, load: Load, configuration: Callable[[float], Configuration]) -> int:
    """Save new weights, wait until they are in force, and repeat until the load has ended; return how often."""
    file, log = server.folder / "config" / "models.yaml", server.folder / "output.log"
    new = file.with_suffix(".new")
    reloads = 0
    while not load.is_over():
        new.write_text(json.dumps({"models": configuration(2.0 + reloads)[0]}), encoding="utf-8")
        new.replace(file)
        while not load.is_over() and log.read_bytes().count(b'"config.reloaded"') <= reloads:
            time.sleep(_POLL)
        reloads += not load.is_over()
    return reloads


def large_bodies(rig: Rig) -> Measure:
    """Send 8 MiB bodies, some that pass untouched and some whose model is rewritten."""
    rows: Rows = {}
    body = request(padding=_BODY)

    def measure(server: Server) -> dict[str, float]:
        rest = server.resident()
        server.forget_peak()
        seen = rig.loaded(server, body, connections=1)
        bodies = (server.peak() - rest) / len(body)
        return {"CPU ms/request": per(seen.cpu, seen.answers) / 1e3, "peak, bodies": bodies, "errors": seen.errors}

    with rig.upstream() as upstream:
        for name, model in (("untouched", "m"), ("rewritten", "their-name-of-m")):
            with rig.gateway(*renamed(upstream, model)) as server:
                rows[name] = measure(server)
        for peer in rig.peers if rig.pace.large else ():
            with rig.peer(peer, upstream) as server:
                rows[peer.name] = measure(server)
    return Measure("bodies", "8 MiB request bodies, one connection", rows)


def start(rig: Rig) -> Measure:
    """Start each five times; take the time to the first answer."""
    times: dict[str, list[float]] = {}
    with rig.upstream() as upstream:
        for _ in range(5):
            began = time.monotonic()
            with _usual(rig, upstream):
                times.setdefault(_GATEWAY, []).append(time.monotonic() - began)
            for peer in rig.peers:
                began = time.monotonic()
                with rig.peer(peer, upstream):
                    times.setdefault(peer.name, []).append(time.monotonic() - began)
    return Measure("start", "start to first answer, five starts", {n: {"p50 s": median(t)} for n, t in times.items()})


def observers(rig: Rig) -> Measure:
    """Hand the observers requests that never happened."""
    command = ("taskset", "-c", str(rig.cores.measured), sys.executable, "-m", "scripts.benchmark.observers")
    said = subprocess.run((*command, str(rig.pace.seconds)), check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
    title = "observers of 5,000 requests a second, the threads that write included"
    return Measure("observers", title, json.loads(said.stdout))


MEASURES: Final = {
    "json": json_answers,
    "stream": stream_chunks,
    "latency": added_latency,
    "thousand": thousand_streams,
    "memory": memory,
    "sizes": sizes,
    "reload": reloads,
    "bodies": large_bodies,
    "start": start,
    "observers": observers,
}
