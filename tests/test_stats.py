"""`gateway stats` before whatever answers; what it prints of a real gateway is in tests/api/test_stats.py."""

import asyncio
import json
import re
from typing import Any

import pytest

from gateway.asking import UnreachableError
from gateway.stats import _time, fetch, table
from tests.fakes.answers import json_answer
from tests.fakes.upstream import Close, ScriptedUpstream, Send, refused_url, status

HEADING = "requests errors rate fallbacks ttft p50 p99 duration p50 p99 prompt completion cost USD avoided USD"
NUMBERS: dict[str, Any] = {
    "requests": 12,
    "errors": 3,
    "error_rate": 0.25,
    "fallbacks": 1,
    "prompt_tokens": 1_000,
    "completion_tokens": 20,
    "cost_unknown": 0,
    "cost_usd": 1234.5678,
    "avoided_usd": 0.0000375,
    "ttft_ms": {"p50": 0.25, "p90": 7.0, "p99": 123.456},
    "duration_ms": {"p50": 999.6, "p90": 1.0, "p99": 61_234.5},
}
ANSWER: dict[str, Any] = {
    "hours": 24.0,
    "since": "2026-11-22T03:00:00Z",
    "until": "2026-11-23T03:00:00Z",
    "model": None,
    "deployment": None,
    "client": None,
    "total": NUMBERS,
    "models": [{"model": "llama", **NUMBERS}],
    "deployments": [{"model": "llama", "deployment": "near", "group": "local", **NUMBERS}],
    "clients": [],
    "ledger": {"waiting": 0, "dropped": 0},
}
DEEP = b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n" + b"[" * 99_999
CUT_OFF = b"HTTP/1.1 502 No\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{"


def test_a_table() -> None:
    rows = [row.split() for row in table(ANSWER).splitlines()]
    cells = ["12", "3", "25.00%", "1", "0.25", "ms", "123", "ms", "0.9996", "s", "61.23", "s", "1000", "20", "1234.57"]
    assert rows == [
        ["24", "h", "until", "2026-11-23T03:00:00Z"],
        [],
        HEADING.split(),
        ["all", *cells, "0.000037"],
        [],
        ["llama", *cells, "0.000037"],
        [],
        ["llama/near", "(local)", *cells, "0.000037"],
    ]


def test_clients_have_a_block_of_their_own() -> None:
    lines = table({**ANSWER, "client": "alice", "clients": [{"client": "alice", **NUMBERS}]}).splitlines()
    assert lines[0] == "24 h until 2026-11-23T03:00:00Z, client alice"
    assert [line.split()[:2] for line in lines[7:]] == [["llama/near", "(local)"], [], ["alice", "12"]]


def test_columns_stand_below_their_names() -> None:
    _, _, head, *rows = table(ANSWER).splitlines()
    ends = {match.end() for match in re.finditer(r"requests|errors|fallbacks|prompt|completion|USD", head)}
    for row in rows:
        assert not row or {len(row), *(match.end() for match in re.finditer(r"\S+", row))} >= ends


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    lines = table({**ANSWER, "models": [{"model": "\x1b[2J\nx", **NUMBERS}]}).splitlines()
    assert lines[5].startswith("\\x1b[2J\\nx ")
    assert all(line.isprintable() for line in lines)


def test_what_is_missing_is_told() -> None:
    answer = {
        **ANSWER,
        "model": "llama",
        "deployment": "near",
        "total": {**NUMBERS, "cost_unknown": 4},
        "models": [
            {
                "model": None,
                **NUMBERS,
                "error_rate": 0.0,
                "ttft_ms": {"p50": None, "p99": None},
                "cost_usd": 0.0,
                "avoided_usd": 6e-8,
            }
        ],
        "ledger": {"waiting": 5, "dropped": 6},
    }
    lines = table(answer).splitlines()
    assert lines[0] == "24 h until 2026-11-23T03:00:00Z, model llama, deployment near"
    assert lines[5].split()[-2:] == ["0", "<0.000001"]
    assert lines[5].split()[:8] == ["(no", "such", "model)", "12", "3", "0%", "1", "-"]
    assert lines[-3:] == [
        "4 requests have no known cost: their deployment has no pricing, or reported no tokens",
        "5 rows wait to be written",
        "6 rows were dropped since the gateway started",
    ]


@pytest.mark.parametrize(
    ("requests", "unknown", "told"), [(12, 12, "unknown"), (12, 11, "0"), (0, 0, "0"), (12, 0, "0")]
)
def test_a_cost_is_unknown_where_no_requests_is_known(requests: int, unknown: int, told: str) -> None:
    """It used to be 0 then, too."""
    group = {**NUMBERS, "requests": requests, "cost_unknown": unknown, "cost_usd": 0.0, "avoided_usd": 0.0}
    lines = table({**ANSWER, "total": group, "models": [{"model": "llama", **group}]}).splitlines()
    assert [lines[3].split()[-2:], lines[5].split()[-2:]] == [[told, told]] * 2
    assert lines[7].split()[-2:] == ["1234.57", "0.000037"]


async def refusal(url: str) -> str:
    with pytest.raises(UnreachableError) as caught:
        await asyncio.to_thread(fetch, url, {"hours": "24", "model": None})
    return str(caught.value)


async def test_a_gateway_that_is_not_there_is_told() -> None:
    url = refused_url()
    assert await refusal(url) == f"cannot ask {url}/stats?hours=24: connection refused"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (json_answer({"status": "ok"}), "{url} is not a gateway: it answers something else"),
        (json_answer([]), "{url} is not a gateway: it answers something else"),
        (json_answer({}).replace(b"{}", b"{]"), "{url} is not a gateway: it answers something else"),
        (json_answer({"total": 12, "items": []}), "{url} is not a gateway: it answers something else"),
        (DEEP, "{url} is not a gateway: it answers something else"),
        (DEEP.replace(b"200 OK", b"500 No"), "{url} answers 500, expected a gateway there"),
        (CUT_OFF, "{url} answers 502, expected a gateway there"),
        (status(404, "Not Found", b"<html>"), "{url} answers 404, expected a gateway there"),
        (status(503, "No", b'{"error": {"message": "there is no ledger"}}'), "there is no ledger"),
        (status(503, "No", b'{"error": {"message": "\\u001b[2Jno"}}'), "\\x1b[2Jno"),
        (status(500, "No", b'{"error": "text"}'), "{url} answers 500, expected a gateway there"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot ask {url}stats?hours=24: BadStatusLine"),
    ],
)
async def test_a_strange_answer_is_told(answer: bytes, told: str) -> None:
    async with ScriptedUpstream([Send(answer), Close()]) as upstream:
        assert (await refusal(f"{upstream.url}/")).startswith(told.format(url=f"{upstream.url}/"))


async def test_the_question_is_asked() -> None:
    async with ScriptedUpstream([Send(json_answer(ANSWER))]) as upstream:
        found = await asyncio.to_thread(fetch, upstream.url, {"hours": "24", "model": "a b", "deployment": None})
        assert found == json.loads(json.dumps(ANSWER))
        assert upstream.requests[0].target == "/stats?hours=24&model=a+b"


def test_a_name_that_is_no_utf_8_is_asked_for_byte_by_byte() -> None:
    with pytest.raises(UnreachableError, match="model=%FF: connection refused"):
        fetch(refused_url(), {"model": "\udcff"})


def test_long_times_are_written_out() -> None:
    assert [_time(each) for each in (61_234.5, 9_999_000, 10_000_000, 86_400_000)] == [
        "61.23 s",
        "9999 s",
        "10000 s",
        "86400 s",
    ]
