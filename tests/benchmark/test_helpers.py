"""The compiled upstream and load of `scripts/bench`, and the whole of it. No figure is judged."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from scripts.benchmark.process import DiedError, Server, reserved_port, running, wait_until_served
from scripts.benchmark.rig import build_helpers, request
from tests.fakes.client import Answer, RawClient, get
from tests.fakes.upstream import Hang, Reset, ScriptedUpstream, Send, Step, chunk, last_chunk, sse, sse_answer, sse_head
from tests.running import START_PATIENCE

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or which("cc") is None or which("taskset") is None, reason="needs Linux, cc and taskset"
)

TOKENS = 5
CORE = min(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the compiled helpers."""
    folder = tmp_path_factory.mktemp("helpers")
    build_helpers(folder)
    return folder


@pytest.fixture
async def upstream(helpers: Path, tmp_path: Path) -> AsyncIterator[str]:
    """Run the upstream; give its URL."""
    command = [str(helpers / "upstream"), "0", "600", str(TOKENS), "1000"]
    with running(command, CORE, tmp_path, heard=True) as process:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        yield f"http://127.0.0.1:{int(line)}"


def post(body: str) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


async def ask(client: RawClient, data: bytes) -> Answer:
    await client.send(data)
    return await client.read_answer()


async def loads(helpers: Path, folder: Path, url: str, body: str, rate: float = 0) -> dict[str, Any]:
    """Run a short load of two connections; give what it saw, of the first run that saw anything on a busy machine."""
    for _ in range(20):
        seen = await load(helpers, folder, url, body, rate)
        if seen["answers"] or seen["errors"]:
            return seen
    raise AssertionError("the load sees nothing")


async def load(helpers: Path, folder: Path, url: str, body: str, rate: float = 0) -> dict[str, Any]:
    file = folder / "body"
    file.write_text(body)
    arguments = [url.rpartition(":")[2], "2", "0.1", "0.2", str(rate), str(file)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(helpers / "load", *arguments, stdout=pipe)
    async with asyncio.timeout(START_PATIENCE):
        said, _ = await process.communicate()
    begin, seen = said.decode().splitlines()
    assert (begin, process.returncode) == ("begin", 0)
    found: dict[str, Any] = json.loads(seen)
    return found


async def test_the_upstream_answers_json_and_health(upstream: str) -> None:
    async with RawClient(upstream) as client:
        for _ in range(2):
            answer = await ask(client, post(request()))
            assert (answer.status, len(answer.body)) == (200, 600)
            assert answer.json()["usage"]["completion_tokens"] == 64
        assert (await ask(client, get("/health"))).body == b"ok"


async def test_the_upstream_reads_a_body_of_any_size_in_any_pieces(upstream: str) -> None:
    async with RawClient(upstream) as client:
        whole = post(request(padding=1 << 20))
        for part in (whole[:10], whole[10:300], whole[300:]):
            await client.send(part)
        assert (await client.read_answer()).status == 200
        assert (await ask(client, post(request()))).status == 200


async def test_the_upstream_streams_each_token_and_an_end(upstream: str) -> None:
    async with RawClient(upstream) as client:
        for _ in range(2):
            answer = await ask(client, post(request(stream=True)))
            *events, done, nothing = answer.body.decode().split("\n\n")
            assert (done, nothing) == ("data: [DONE]", "")
            choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
            contents = [choice["delta"].get("content") for choice in choices]
            assert contents == ["", *(f" tok{n:05}" for n in range(TOKENS)), None]
            assert [choice["finish_reason"] for choice in choices] == [None] * (TOKENS + 1) + ["stop"]


async def test_the_load_counts_answers(helpers: Path, tmp_path: Path, upstream: str) -> None:
    seen = await loads(helpers, tmp_path, upstream, request())
    assert seen["answers"] == seen["latency"]["count"] > 0
    assert (seen["events"], seen["errors"]) == (0, 0)
    assert seen["latency"]["p50"] <= seen["latency"]["p99"] <= seen["latency"]["max"]


async def test_the_load_keeps_to_its_rate(helpers: Path, tmp_path: Path, upstream: str) -> None:
    seen = await loads(helpers, tmp_path, upstream, request(), rate=10)
    assert 0 < seen["answers"] <= 4  # two connections, a turn each 0.2 s


async def test_the_load_counts_the_events_of_streams(helpers: Path, tmp_path: Path, upstream: str) -> None:
    seen = await loads(helpers, tmp_path, upstream, request(stream=True))
    assert seen["answers"] > 0
    assert seen["errors"] == 0
    per_stream = TOKENS + 3  # the role, the finish reason and [DONE]
    assert abs(seen["events"] - seen["answers"] * per_stream) <= 2 * per_stream


@pytest.mark.parametrize(
    ("steps", "well"),
    [
        ([Send(sse_answer('{"choices": []}', "[DONE]"))], True),
        ([Send(sse_answer('{"choices": []}'))], False),
        ([Send(sse_head() + chunk(sse("[DONE]"))), Reset()], False),
        ([Send(sse_head() + chunk(sse("[DO")[:9]) + chunk(b"NE]\n\n") + last_chunk())], True),
        ([Send(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")], False),
        ([Send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")], True),
    ],
)
async def test_the_load_tells_a_whole_answer_from_a_broken_one(
    helpers: Path, tmp_path: Path, steps: list[Step], *, well: bool
) -> None:
    async with ScriptedUpstream(steps) as upstream:
        seen = await loads(helpers, tmp_path, upstream.url, request(stream=True))
    assert (seen["answers"] > 0, seen["errors"] > 0) == (well, not well)


async def test_an_answer_that_does_not_end_is_not_counted(helpers: Path, tmp_path: Path) -> None:
    async with ScriptedUpstream([Send(sse_head() + chunk(sse("{}"))), Hang()]) as upstream:
        seen = await load(helpers, tmp_path, upstream.url, request(stream=True))
    assert (seen["answers"], seen["errors"]) == (0, 0)


def test_a_server_is_read_from_the_system(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from http.server import BaseHTTPRequestHandler as Handler, HTTPServer\n"
        "print('more than a pipe holds' * 9999, flush=True)\n"
        "Handler.do_POST = lambda self: self.send_error(200)\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    with (
        reserved_port() as port,
        running([sys.executable, "-c", script, str(port)], CORE, tmp_path) as process,
    ):
        wait_until_served(process, port, tmp_path)
        server = Server(process.pid, port, tmp_path)
        assert server.cpu() > 0
        server.forget_peak()
        resident = server.resident()
        assert server.peak() >= resident > 1 << 20


def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    with (
        reserved_port() as port,
        running([sys.executable, "-c", "raise SystemExit('no port')"], CORE, tmp_path) as process,
        pytest.raises(DiedError, match="no port"),
    ):
        wait_until_served(process, port, tmp_path)


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    """Run `python -m scripts.benchmark ARGUMENTS`; give its exit code, stdout and stderr."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "scripts.benchmark", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT)
    async with asyncio.timeout(START_PATIENCE):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_whole_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, out, err = await bench("json", "--quick", "--seconds", "0.1", "--without", "litellm", "--json", str(file))
    assert (code, err) == (0, "")
    title, columns, *rows = out.partition("\n\n")[0].splitlines()
    assert title == "600-byte JSON answers, 32 keep-alive connections"
    assert "CPU us/request" in columns
    assert [row.split()[0] for row in rows][:2] == ["gateway", "bare"]
    written = json.loads(file.read_text())
    assert [(m["name"], m["rows"]["gateway"]["errors"]) for m in written["measures"]] == [("json", 0)]
    assert any(line.startswith("gateway ") for line in written["circumstances"])


async def test_wrong_usage_is_told() -> None:
    code, out, err = await bench("--routing", "[]")
    assert (code, out) == (2, "")
    assert "found '[]', expected a JSON object" in err
