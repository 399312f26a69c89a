"""What an attempt may die of before the client has got a byte, and what follows."""

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.execution.support import CHAT, DONE, ask, chain, error_of, read_broken, running
from tests.fakes.client import post
from tests.fakes.connection import PATIENCE
from tests.fakes.leaping import RUNS_OUT, leap
from tests.fakes.upstream import (
    Close,
    Hang,
    Pause,
    Request,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    last_chunk,
    refused_url,
    sse_answer,
    sse_head,
    status,
)
from tests.running import Config, until

OK = {"answer": "from b"}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@contextmanager
def deaf_url() -> Iterator[str]:
    """Give a URL where connections are never accepted: its backlog is full."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `nowhere.invalid` not be found, however slow the name server is."""
    lookup = socket.getaddrinfo

    def found(host: str, *others: Any, **options: Any) -> Any:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup(host, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.fixture
def over(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let nobody answer for `*.invalid` until this is over."""
    lookup, over = socket.getaddrinfo, threading.Event()

    def found(host: str, *others: Any, **options: Any) -> Any:
        if not host.endswith(".invalid"):
            return lookup(host, *others, **options)
        over.wait(PATIENCE)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield over
    over.set()


async def test_names_that_nobody_answers_for_hold_up_nobody(config: Config, over: threading.Event) -> None:
    """Two of them held up every new connection, to an address, too: uvloop connects in the threads that look up."""
    names = [f"{number}.invalid" for number in range(9)]
    async with ScriptedUpstream([Send(json_answer(OK))]) as a:
        near = {"near": chain(a.url), "named": chain(a.url.replace("127.0.0.1", "localhost"))}
        async with running(config, {name: chain(f"http://{name}") for name in names} | near, timeout=PATIENCE) as gate:
            asking = [asyncio.create_task(gate.post(name)) for name in names]
            await until(lambda: len(gate.gateway.upstream._resolver.sought) == len(names))
            assert [(await gate.post(name)).status for name in near] == [200, 200]
            over.set()
            assert {answer.status for answer in await asyncio.gather(*asking)} == {502}


@pytest.mark.usefixtures("over")
async def test_a_name_that_nobody_answers_for_is_no_box_that_does_not(config: Config) -> None:
    async with running(config, {"m": chain("http://a.invalid")}, timeout=RUNS_OUT) as gate:
        asking = asyncio.create_task(gate.post("m"))
        await until(lambda: gate.gateway.upstream._resolver.sought == ["a.invalid"])
        leap(RUNS_OUT)
        assert (await asking).status == 502
        assert await gate.failures() == ["dns"]
        assert gate.outcomes[0].attempts[0].detail == "name lookup timed out"


async def test_without_a_thread_to_look_a_name_up_nobody_is_blamed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "lookup":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with ScriptedUpstream() as b, running(config, {"m": chain("http://a.invalid", b.url)}) as gate:
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"], b.requests) == (503, "gateway_exhausted", [])
        assert await gate.failures() == ["local_fault"]


@pytest.mark.parametrize(
    ("url", "failure", "detail"),
    [
        pytest.param(refused_url(), "connect_refused", "ECONNREFUSED", id="refused"),
        ("http://nowhere.invalid", "dns", "name lookup failed"),
        (f"http://{'a' * 64}.invalid", "dns", "the host is not a valid host name"),
    ],
)
async def test_an_unreachable_box_is_passed_over(
    config: Config, monkeypatch: pytest.MonkeyPatch, url: str, failure: str, detail: str
) -> None:
    ask_nobody(monkeypatch)
    async with (
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(url, b.url)}, timeout=9) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json()) == (200, OK)
        assert answer.head.get("x-gateway-deployment") == "b"
        assert answer.head.get("x-gateway-attempts") == "2"
        first, second = (await gate.outcome()).attempts
        assert (first.deployment, first.status, first.failure, first.detail) == ("a", None, failure, detail)
        assert (second.deployment, second.status, second.failure, second.detail) == ("b", 200, None, None)
        assert gate.outcomes[0].fallback
        assert gate.outcomes[0].failure is None


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog refuses elsewhere")
async def test_a_connection_that_does_not_open_in_time_is_given_up(config: Config) -> None:
    with deaf_url() as url:
        async with running(config, {"m": chain(url)}, timeout=0.05) as gate:
            answer = await gate.post("m")
            assert (answer.status, error_of(answer)["code"]) == (504, "all_deployments_failed")
            assert await gate.failures() == ["connect_timeout"]


@pytest.mark.parametrize(
    ("steps", "timeout", "failure"),
    [([], 0.05, "connect_timeout"), ([Send(b"HTTP/1.1 400 no TLS here\r\n\r\n"), Close()], 9, "tls")],
)
async def test_tls_against_a_plain_port(config: Config, steps: list[Step], timeout: float, failure: str) -> None:  # noqa: ASYNC109 - a setting
    async with (
        ScriptedUpstream(on_accept=steps) as a,
        running(config, {"m": chain(a.url.replace("http:", "https:"))}, timeout=timeout) as gate,
    ):
        assert (await gate.post("m")).status == {"tls": 502}.get(failure, 504)
        assert await gate.failures() == [failure]


@pytest.mark.parametrize(
    ("steps", "failure"),
    [
        ([Close()], "disconnected"),
        ([Reset()], "disconnected"),
        ([Send(HEAD[:30]), Close()], "disconnected"),
        ([Send(HEAD[:9]), Reset()], "disconnected"),
        ([Send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")], "malformed_answer"),
        ([Send(HEAD + b"x: " + b"y" * 70_000 + b"\r\n\r\n")], "malformed_answer"),
        (
            [Send(HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")],
            "malformed_answer",
        ),
        ([Send(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ")], "malformed_answer"),
        ([Send(HEAD + b"content-length: -2\r\n\r\n{}")], "malformed_answer"),
        ([Send(HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")], "malformed_answer"),
        (
            [Send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n{}")],
            "malformed_answer",
        ),
        ([Send(HEAD + b"content-length: 9\r\n\r\n"), Close()], "cut_answer"),
        ([Send(HEAD + b"content-length: 9\r\n\r\n"), Reset()], "cut_answer"),
        ([Send(HEAD + b"transfer-encoding: chunked\r\n\r\n"), Close()], "cut_answer"),
        ([Send(HEAD + b"\r\n"), Close()], "empty_answer"),
        ([Send(HEAD + b"\r\n"), Reset()], "cut_answer"),
        ([Send(HEAD + b"content-length: 0\r\n\r\n")], "empty_answer"),
        ([Send(sse_head() + last_chunk())], "empty_answer"),
    ],
)
async def test_an_answer_that_does_not_begin_is_asked_for_elsewhere(
    config: Config, steps: list[Step], failure: str
) -> None:
    async with (
        ScriptedUpstream([*steps, Hang()] if steps[-1:] != [Close()] else steps) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json()) == (200, OK)
        tries = 2 if failure == "disconnected" else 1
        assert await gate.failures() == [failure] * tries + [None]
        assert (len(a.requests), len(gate.delays)) == (tries, tries - 1)


@pytest.mark.parametrize(
    ("code", "failure", "tries"),
    [
        *((code, "send_again", 2) for code in (408, 425)),
        (429, "rate_limited", 2),
        *((code, "server_error", 2) for code in (500, 502, 503, 529, 599)),
        *((code, "gateway_timeout", 1) for code in (504, 524)),
        *((code, "key_refused", 1) for code in (401, 402, 403)),
        *((code, "not_served", 1) for code in (404, 501)),
        *((code, "redirected", 1) for code in (300, 301, 302, 304, 307, 308)),
    ],
)
async def test_a_status_that_may_differ_elsewhere_is_passed_over(
    config: Config, code: int, failure: str, tries: int
) -> None:
    async with ScriptedUpstream([Send(json_answer(OK))]) as elsewhere, ScriptedUpstream([Send(json_answer(OK))]) as b:
        location = [("location", elsewhere.url + CHAT)]
        async with (
            ScriptedUpstream([Send(status(code, "Whatever", b"" if code == 304 else b"no", location))]) as a,
            running(config, {"m": chain(a.url, b.url)}) as gate,
        ):
            answer = await gate.post("m")
            assert (answer.status, answer.json()) == (200, OK)
            assert await gate.failures() == [failure] * tries + [None]
            assert [attempt.status for attempt in gate.outcomes[0].attempts] == [code] * tries + [200]
            assert (len(a.requests), len(b.requests), elsewhere.requests) == (tries, 1, [])
            assert len(gate.delays) == tries - 1


async def test_a_model_that_has_crashed_is_asked_for_elsewhere(config: Config) -> None:
    """As LM Studio says it."""
    crashed = {"error": "The model has crashed without additional information. (Exit code: null)"}
    async with (
        ScriptedUpstream([Send(json_answer(crashed, 400))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert (await gate.post("m")).json() == OK
        assert await gate.failures() == ["server_error", "server_error", None]


def unknown(model: str) -> dict[str, object]:
    """Say that there is no such model, as OpenRouter does with status 400."""
    return {"error": {"message": f"{model} is not a valid model ID", "code": 400}}


async def test_a_model_that_a_provider_does_not_know_is_asked_for_elsewhere(config: Config) -> None:
    async with (
        ScriptedUpstream(lambda _, request: [Send(json_answer(unknown(request.json()["model"]), 400))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url), "alone": chain(a.url)}) as gate,
    ):
        assert ((await gate.post("m")).json(), await gate.failures()) == (OK, ["model_missing", None])
        answer = await gate.post("alone")
        assert (answer.status, answer.json()) == (400, unknown("alone"))


async def test_a_further_model_that_a_client_names_puts_nothing_out(config: Config) -> None:
    def script(_: int, request: Request) -> list[Step]:
        named = request.json().get("models", [])
        return [Send(json_answer(unknown(named[0]), 400) if named else json_answer(OK))]

    async with (
        ScriptedUpstream(script) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.say(ask(models=["nobody/nothing"]))
        assert (answer.status, answer.json(), await gate.failures()) == (400, unknown("nobody/nothing"), [None])
        assert (await gate.say(ask())).json() == OK


async def test_a_key_that_is_refused_with_a_400_is_not_the_clients(config: Config) -> None:
    """As Gemini does."""
    told = [{"error": {"code": 400, "message": "API key expired. Please renew the API key."}}]
    async with (
        ScriptedUpstream([Send(json_answer(told, 400))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert ((await gate.post("m")).json(), await gate.failures()) == (OK, ["key_refused", None])


async def test_a_firewall_that_dislikes_a_text_puts_nothing_out(config: Config) -> None:
    page = b"<!DOCTYPE html><title>Attention Required! | Cloudflare</title>"
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(page)
    async with (
        ScriptedUpstream(lambda index, _: [Send(json_answer(OK) if index else head + page)]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.body, await gate.failures()) == (403, page, ["not_served"])
        assert ((await gate.post("m")).json(), len(a.requests)) == (OK, 2)


async def test_what_a_model_cannot_do_costs_it_nothing_else(config: Config) -> None:
    """As OpenAI says it of a chat model that is asked for embeddings."""
    refusal = {"error": {"message": "You are not allowed to generate embeddings from this model", "code": None}}

    def script(_: int, request: Request) -> list[Step]:
        return [Send(json_answer(OK) if request.target == CHAT else json_answer(refusal, 403))]

    async with ScriptedUpstream(script) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post({"model": "m", "input": "hi"}, "/v1/embeddings")
        assert (answer.status, answer.json(), await gate.failures()) == (403, refusal, ["not_served"])
        assert (await gate.log())[-1]["event"] == "request"
        assert (await gate.post("m")).json() == OK


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        (
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "not_served",
        ),
        ("url must be base64 encoded", "not_served"),
        ("404, message='Not Found', url='https://example.com/cat.png'", "not_served"),
        ("input (1202 tokens) is too large to process. increase the physical batch size", "context_length"),
    ],
)
async def test_what_a_box_cannot_take_is_told_in_its_words_though_it_says_500(
    config: Config, message: str, failure: str
) -> None:
    """As llama.cpp and vLLM do. A row of such requests puts nothing out."""
    said = {"error": {"code": 500, "message": message, "type": "server_error"}}

    def script(index: int, _: Request) -> list[Step]:
        return [Send(json_answer(said, 500) if index < 3 else json_answer(OK))]

    async with (
        ScriptedUpstream(script) as a,
        running(config, {"m": chain(a.url)}, breaker={"failures": 1}) as gate,
    ):
        for number in range(1, 4):
            answer = await gate.post("m")
            assert (answer.status, answer.json(), await gate.failures(number)) == (400, said, [failure])
        assert ((await gate.post("m")).json(), len(a.requests)) == (OK, 4)


async def test_what_a_box_does_not_implement_is_told_in_its_words(config: Config) -> None:
    """As llama.cpp does without `--embeddings`."""
    message = "This server does not support embeddings. Start it with `--embeddings`"
    said = {"error": {"code": 501, "message": message, "type": "not_supported_error"}}
    async with ScriptedUpstream([Send(json_answer(said, 501))]) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post({"model": "m", "input": "hi"}, "/v1/embeddings")
        assert (answer.status, answer.json(), await gate.failures()) == (400, said, ["not_served"])


@pytest.mark.parametrize(
    ("code", "body", "told", "failure"),
    [
        (501, b"", 502, "not_served"),
        (501, b"<h1>Not Implemented</h1>", 502, "not_served"),
        (500, b"input is too large to process", 400, "context_length"),
    ],
)
async def test_a_5xx_without_words_of_an_api_is_told_in_the_gateways(
    config: Config, code: int, body: bytes, told: int, failure: str
) -> None:
    head = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (code, len(body))
    async with ScriptedUpstream([Send(head + body)]) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post("m")
        assert (answer.status, answer.json()["error"]["code"]) == (told, "all_deployments_failed")
        assert await gate.failures() == [failure]


async def test_a_box_that_cannot_read_what_its_model_wrote_about_contexts_is_passed_over(config: Config) -> None:
    """As llama.cpp says it, with the model's text."""
    message = "Failed to parse input at pos 8: <tool_call> asks for the context length"
    said = {"error": {"code": 500, "message": message, "type": "server_error"}}
    async with (
        ScriptedUpstream([Send(json_answer(said, 500))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert ((await gate.post("m")).json(), await gate.failures()) == (OK, ["server_error", "server_error", None])


async def test_what_one_box_cannot_take_another_may(config: Config) -> None:
    said = {"error": {"code": 500, "message": "image input is not supported - hint: ...", "type": "server_error"}}
    async with (
        ScriptedUpstream([Send(json_answer(said, 500))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert ((await gate.post("m")).json(), await gate.failures()) == (OK, ["not_served", None])


@pytest.mark.parametrize("code", [400, 406, 409, 413, 415, 422, 451])
async def test_every_other_status_is_the_clients(config: Config, code: int) -> None:
    refusal = {"error": {"message": "as the upstream said it", "code": code}}
    async with (
        ScriptedUpstream([Send(json_answer(refusal, code, [("x-ratelimit-remaining-requests", "7")]))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.body) == (code, json.dumps(refusal).encode())
        assert answer.head.get("x-ratelimit-remaining-requests") == "7"
        assert answer.head.get("x-gateway-deployment") == "a"
        assert answer.head.get("x-gateway-attempts") == "1"
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.served_model) == (code, None, "m")
        assert (outcome.bytes_out, outcome.first_content, len(outcome.attempts)) == (len(answer.body), None, 1)
        assert b.requests == []


@pytest.mark.parametrize(
    ("codes", "code", "message", "failures"),
    [
        ([301], 502, "no deployment of 'm' answered, 1 attempt made", ["redirected"]),
        ([500], 502, "no deployment of 'm' answered, 2 attempts made", ["server_error"] * 2),
        (
            [500, 503, 301],
            502,
            "no deployment of 'm' answered, 5 attempts made",
            ["server_error", "server_error", "server_error", "redirected", "server_error"],
        ),
        ([302, 500], 502, "no deployment of 'm' answered, 3 attempts made", ["redirected"] + ["server_error"] * 2),
    ],
)
async def test_when_all_fail_the_client_gets_one_error(
    config: Config, codes: list[int], code: int, message: str, failures: list[str]
) -> None:
    script = [Send(status(given, "No", b"secret")) for given in codes]
    async with (
        ScriptedUpstream(lambda _, request: [script[int(request.target[1])]]) as box,
        running(config, {"m": chain(*[f"{box.url}/{place}" for place in range(len(codes))])}) as gate,
    ):
        answer = await gate.post("m")
        error = error_of(answer)
        assert (answer.status, error["message"], error["type"]) == (code, message, "upstream_error")
        assert (error["code"], error["param"]) == ("all_deployments_failed", None)
        assert answer.head.get("x-gateway-attempts") == str(len(failures))
        assert answer.head.get("x-gateway-deployment") is None
        outcome = await gate.outcome()
        assert (outcome.status, outcome.served_model, outcome.fallback) == (code, None, False)
        assert (outcome.failure, await gate.failures()) == (failures[0], failures)
        assert len(box.requests) == len(failures)


async def test_an_upstreams_own_429_is_told_when_all_fail(config: Config) -> None:
    limited = {"error": {"message": "slow down"}}
    async with (
        ScriptedUpstream([Send(json_answer(limited, 429, [("retry-after", "7"), ("set-cookie", "a=b")]))]) as a,
        running(config, {"m": chain(a.url, refused_url())}) as gate,
    ):
        answer = await gate.post("m")
        assert (answer.status, answer.json(), answer.head.get("retry-after")) == (429, limited, "7")
        assert answer.head.get("x-gateway-deployment") == "a"
        assert (answer.head.get("x-gateway-attempts"), answer.head.get("set-cookie")) == ("3", None)
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.served_model) == (429, "rate_limited", None)
        assert outcome.bytes_out == len(answer.body)


async def test_a_429_whose_body_breaks_off_is_a_429_still(config: Config) -> None:
    steps = [Send(b"HTTP/1.1 429 No\r\ncontent-length: 9\r\n\r\nab"), Close()]
    async with ScriptedUpstream(steps) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post("m")
        assert (answer.status, error_of(answer)["code"]) == (429, "all_deployments_failed")
        assert await gate.failures() == ["rate_limited"] * 2


async def test_a_stale_connection_is_replaced_unseen(config: Config) -> None:
    def script(index: int, request: Request) -> list[Step]:
        stale = request.connection == 1 and index > 0
        return [Close()] if stale else [Send(json_answer({"connection": request.connection}))]

    async with (
        ScriptedUpstream(script) as a,
        ScriptedUpstream() as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        for connection in (1, 2):
            answer = await gate.post("m")
            assert (answer.status, answer.json()) == (200, {"connection": connection})
            assert answer.head.get("x-gateway-attempts") == "1"
        (attempt,) = (await gate.outcome(2)).attempts
        assert (attempt.deployment, attempt.failure) == ("a", None)
        assert attempt.detail == "reconnected: the pooled connection was closed"
        assert (len(a.requests), a.connections, b.requests) == (3, 2, [])


async def test_a_pooled_connection_that_is_closed_late_has_failed(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box had worked on the request by then, and was given it once more, unseen."""
    monkeypatch.setattr("gateway.execution.opening._STALE", -1.0)
    async with (
        ScriptedUpstream(lambda index, _: [Close()] if index else [Send(json_answer(OK))]) as a,
        ScriptedUpstream([Send(json_answer(OK))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
    ):
        assert [(await gate.post("m")).status for _ in range(2)] == [200, 200]
        assert await gate.failures(2) == ["disconnected", "disconnected", None]
        assert (len(a.requests), len(b.requests)) == (3, 1)


@pytest.mark.parametrize(
    ("steps", "detail", "requests"),
    [
        ([Close()], "closed without an answer", 4),
        ([Send(HEAD), Close()], "closed in the middle of the answer's head", 3),
    ],
)
async def test_a_connection_is_replaced_once_and_only_before_any_byte(
    config: Config, steps: list[Step], detail: str, requests: int
) -> None:
    async with (
        ScriptedUpstream(lambda index, _: steps if index else [Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        assert (await gate.post("m")).status == 200
        assert (await gate.post("m")).status == 502
        attempts = (await gate.outcome(2)).attempts
        assert [(attempt.failure, attempt.detail) for attempt in attempts] == [("disconnected", detail)] * 2
        assert len(a.requests) == requests


async def test_an_idle_connection_that_is_reset_is_nobodys_concern(config: Config) -> None:
    steps = [Send(json_answer(OK)), Pause(asyncio.Event()), Reset()]
    async with ScriptedUpstream(steps) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.post("m")).status == 200
        steps[1].until.set()  # type: ignore[attr-defined] # the Pause
        await a.all_closed()
        assert (await gate.post("m")).status == 200
        assert [record["event"] for record in await gate.log()] == ["gateway.started", "request", "request"]


LARGE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(
    b" " * (2 << 20)
)


async def test_a_body_that_is_no_stream_is_not_asked_for_again_once_it_has_begun(config: Config) -> None:
    go_on = asyncio.Event()
    steps = [Send(LARGE), Pause(go_on), Close()]
    async with (
        ScriptedUpstream(steps) as a,
        ScriptedUpstream([Send(sse_answer(DONE.decode()))]) as b,
        running(config, {"m": chain(a.url, b.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask())
        await a.arrived()
        go_on.set()
        await read_broken(client)
        assert (await gate.failures(), b.requests) == (["cut_answer"], [])


async def test_a_body_that_cannot_be_renamed_is_the_clients_fault(config: Config) -> None:
    route = {"a": {"base_url": refused_url(), "provider_model_id": "other"}}
    async with running(config, {"m": route}) as gate:
        body = b'{"model": "m", "model": "m"}'
        request = post(CHAT, {}).replace(
            b"content-length: 2\r\n\r\n{}", b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        answer = await gate.say(request)
        error = error_of(answer)
        assert (answer.status, error["param"], error["type"]) == (400, "model", "invalid_request_error")
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.attempts) == (400, "invalid_request", ())


async def test_a_model_that_waits_for_a_variable_has_no_deployment(config: Config) -> None:
    async with running(config, {"m": {"a": {"base_url": "${NOWHERE}"}}}) as gate:
        answer = await gate.post("m")
        error = error_of(answer)
        assert (answer.status, error["code"]) == (503, "no_deployment")
        assert error["message"] == "the model 'm' has no active deployment"
        assert answer.head.get("retry-after") == "1"
        assert ((await gate.outcome()).failure, gate.outcomes[0].attempts) == ("no_deployment", ())
