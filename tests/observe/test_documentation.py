"""docs/logging.md shows what is written."""

import json
import re
from pathlib import Path
from typing import Any

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.log import RequestLog, make_logger
from gateway.observe.render import Secrets, render
from gateway.observe.request import Requests
from gateway.observe.sink import LogSink

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")


def request_record() -> dict[str, Any]:
    """Return a request's record in which no field is absent."""
    sink = LogSink()
    attempt = Attempt("llama", "box-a", "local", 1.0, 200, "broken", "connection lost", "replay")
    outcome = Outcome(
        request_id="r-1",
        operation="embeddings",
        model="alias",
        served_model="llama",
        generation=1,
        stream=True,
        status=200,
        attempts=(attempt, Attempt("llama", "box-b", "local", 1.0, rescue="replay")),
        fallback=False,
        duration=1.0,
        first_content=1.0,
        usage=Usage(1, 1, 1, 1),
        lost=Usage(1, 1),
        malformed_events=1,
        client_name="alice",
        failure="broken",
    )
    RequestLog(make_logger(sink, "info")).take(Batch([0.0], [outcome]))
    told = sink._queue.get()
    assert isinstance(told, Requests)
    (record,) = told.ended()
    read: dict[str, Any] = json.loads(render(record, Secrets()))
    return read


def test_every_example_is_a_line_of_its_section() -> None:
    examples = 0
    for section in PAGE.split("\n### ")[1:]:
        events = section.splitlines()[0].split(", ")
        for line in re.findall(r"^\{.*\}$", section, re.MULTILINE):
            record = json.loads(line)
            assert list(record)[:3] == ["time", "level", "event"]
            assert record["event"] in events
            examples += 1
    assert examples > 10


def test_every_field_of_a_request_is_told() -> None:
    section = PAGE.split("\n### request\n")[1].split("\n### ")[0]
    first_column = " ".join(re.findall(r"^\| (.+?) \|", section, re.MULTILINE))
    record = request_record()
    assert re.findall(r"`(\w+)`", first_column) == [name for name in record if name not in {"time", "level", "event"}]
    (attempts_row,) = re.findall(r"^\| `attempts` \| .*$", section, re.MULTILINE)
    assert set(record["attempts"][0]) <= set(re.findall(r"`(\w+)`", attempts_row))
