"""Streams that break after their first content, and how they are carried on: the client sees one, unbroken."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.execution.outcome import Usage
from tests.execution.support import CHAT, CONTENT, DONE, FINISH, Running, ask, chain, read_broken, running
from tests.execution.talking import (
    PROMPT_TOKENS,
    TEXT,
    WORDS,
    Breaking,
    Prefill,
    Script,
    events,
    read_through,
    said,
    say_through,
    telling,
    told_events,
)
from tests.fakes.client import Answer, post
from tests.fakes.leaping import RUNS_OUT, SILENCE
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
    sse,
    sse_head,
    status,
)
from tests.running import Config, until

QUESTION: list[dict[str, object]] = [{"role": "user", "content": "say it"}]
OVERLOADED = Send(chunk(sse('{"error":{"message":"overloaded"}}')))
BROKEN = b'"code":"stream_broken"}}\n\n'


def asking(**fields: object) -> bytes:
    return post(CHAT, {"model": "m", "stream": True, "messages": QUESTION, **fields})


def boxes(a: ScriptedUpstream, *others: ScriptedUpstream, kind: str = "vllm") -> dict[str, object]:
    """Write a route of which the first box is a vLLM, and the others, tried in their order, are of a kind."""
    route: dict[str, object] = chain(a.url, *(other.url for other in others))
    later = [{**entry, "kind": kind} for entry in list(route.values())[1:] if isinstance(entry, dict)]
    return {**route, **dict(zip(list(route)[1:], later, strict=True))}


def whole(answer: Answer) -> bool:
    """Check that a client cannot tell an answer from an unbroken one, and that it has all of the text."""
    told = told_events(answer.body)
    frames = {(event["id"], event["created"]) for event in told}
    finishes = [choice["finish_reason"] for event in told for choice in event["choices"] if choice["finish_reason"]]
    roles = [choice for event in told for choice in event["choices"] if "role" in choice["delta"]]
    return (said(answer.body), len(frames), finishes, len(roles)) == (TEXT, 1, ["stop"], 1)


Second = tuple[str, Prefill, list[str]]
CONTINUES: Second = ("vllm", "heeded", ["continue"])
BREAKS: list[tuple[list[Step], str]] = [
    ([Close()], "cut_answer"),
    ([Reset()], "cut_answer"),
    ([Send(last_chunk())], "cut_answer"),
    ([Send(chunk(b'data: {"choices": [{"del')), Close()], "cut_answer"),
    ([Send(b"no chunk size\r\n"), Hang()], "cut_answer"),
    ([OVERLOADED, Send(last_chunk())], "error_answer"),
    ([OVERLOADED, Send(chunk(DONE)), Hang()], "error_answer"),
]
SECONDS: list[Second] = [
    ("sglang", "heeded", ["continue"]),
    ("llamacpp", "heeded", ["continue"]),
    ("openai", "heeded", ["replay"]),
    ("vllm", "refused", ["continue", "replay"]),
]


@pytest.mark.parametrize("after", [1, 5, len(WORDS)])
@pytest.mark.parametrize(
    ("end", "failure", "second"),
    [*((*end, CONTINUES) for end in BREAKS), *((*BREAKS[0], second) for second in SECONDS)],
)
async def test_a_stream_that_breaks_is_carried_on(
    config: Config, end: list[Step], failure: str, second: Second, after: int
) -> None:
    kind, prefill, rescue = second
    async with (
        ScriptedUpstream(cut := Breaking(after, *end)) as a,
        ScriptedUpstream(telling(prefill=prefill)) as b,
        running(config, {"m": boxes(a, b, kind=kind)}) as gate,
    ):
        answer = await say_through(gate, asking(), cut)
        assert whole(answer), answer.body
        assert (answer.head.get("x-gateway-deployment"), answer.head.get("x-gateway-attempts")) == ("a", "1")
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.fallback, outcome.rescue) == (200, None, True, rescue[-1])
        assert [attempt.rescue for attempt in outcome.attempts] == [None, *rescue]
        refused = ["rescue_refused"] * (len(rescue) - 1)
        assert [attempt.failure for attempt in outcome.attempts] == [failure, *refused, None]
        assert outcome.answered is outcome.attempts[-1]
        assert outcome.bytes_out == len(answer.body)


async def test_what_a_box_is_asked_to_continue(config: Config) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(4, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b)}) as gate,
    ):
        assert whole(await say_through(gate, asking(max_tokens=20, temperature=0.5, tools=[{"type": "function"}]), cut))
        assert b.requests[0].json() == {
            "model": "m",
            "stream": True,
            "messages": [*QUESTION, {"role": "assistant", "content": "".join(WORDS[:4])}],
            "max_tokens": 16,
            "temperature": 0.5,
            "tools": [{"type": "function"}],
            "stream_options": {"include_usage": True},
            "continue_final_message": True,
            "add_generation_prompt": False,
        }


async def test_a_llamacpp_does_not_say_a_few_words_twice(config: Config) -> None:
    """Without the fields it says the text that it continues once more, and of a few characters that cannot be told."""

    def script(index: int, request: Request) -> Sequence[Step]:
        asked = request.json().get("continue_final_message") is True
        return telling(prefill="heeded" if asked else "ignored")(index, request)

    async with (
        ScriptedUpstream(cut := Breaking(1, Close())) as a,
        ScriptedUpstream(script) as b,
        running(config, {"m": boxes(a, b, kind="llamacpp")}) as gate,
    ):
        answer = await say_through(gate, asking(), cut)
        assert whole(answer), answer.body


@pytest.mark.parametrize("space", [" ", "\n\n", " \n\t "])
@pytest.mark.parametrize("rest", ["", "\n", "X", "  X"])
async def test_white_space_at_the_end_is_neither_lost_nor_doubled(config: Config, space: str, rest: str) -> None:
    """Chat templates drop it, so it is not given along, and said again."""
    words = ("The quick brown fox", space, rest + " jumps.")
    async with (
        ScriptedUpstream(cut := Breaking(2, Close(), words=words)) as a,
        ScriptedUpstream(telling(words)) as b,
        running(config, {"m": boxes(a, b)}) as gate,
    ):
        assert said((await say_through(gate, asking(), cut)).body) == "".join(words)
        assert b.requests[0].json()["messages"][-1]["content"] == words[0]


async def test_nothing_but_white_space_is_not_gone_on_from(config: Config) -> None:
    words = ("\n\n", "The fox.")
    async with (
        ScriptedUpstream(cut := Breaking(1, Close(), words=words)) as a,
        ScriptedUpstream(telling(words)) as b,
        running(config, {"m": boxes(a, b)}) as gate,
    ):
        assert said((await say_through(gate, asking(), cut)).body) == "".join(words)
        assert (await gate.outcome()).rescue == "replay"


async def test_what_a_box_is_asked_to_say_again(config: Config) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(4, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b, kind="openai")}) as gate,
    ):
        assert whole(await say_through(gate, asking(max_tokens=20), cut))
        assert b.requests[0].body == a.requests[0].body


async def test_a_stall_is_carried_on(config: Config) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(3, SILENCE)) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b)}, timeouts={"idle": RUNS_OUT}) as gate,
    ):
        assert whole(await say_through(gate, asking(), cut))
        assert await gate.failures() == ["stalled", None]
        await a.closed_by_peer()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "prefill", "apart"),
    [("vllm", "heeded", 1), ("vllm", "ignored", 3), ("vllm", "refused", 3), ("openai", "heeded", 1)],
)
async def test_a_stream_that_is_cut_anywhere_arrives_whole(
    config: Config, kind: str, prefill: Prefill, apart: int
) -> None:
    """Cut after each of its bytes, those before its first content too, or after one in so many."""
    lengths: list[int] = []
    words = (TEXT[:20], TEXT[20:])  # of less text, a repetition is not recognised

    def script(index: int, request: Request) -> Sequence[Step]:
        body = b"".join(events(request, words))
        lengths.append(len(body))
        ends: list[Step] = [Reset()] if index % 2 else [Send(last_chunk())]
        return [Send(sse_head() + chunk(body[: apart * index + 1])), *ends]

    async with (
        ScriptedUpstream(script) as a,
        ScriptedUpstream(telling(words, prefill=prefill)) as b,
        running(config, {"m": boxes(a, b, kind=kind)}) as gate,
        gate.client() as client,
    ):
        gate.gateway.executor._clock = itertools.count(step=100).__next__  # a breaker that opens lets the next one in
        while not lengths or apart * len(lengths) < lengths[0]:
            await client.send(asking())
            answer = await client.read_answer()
            assert (answer.status, said(answer.body)) == (200, TEXT), (len(lengths), answer.body)


@pytest.mark.parametrize("place", range(0, len(TEXT), 5))
async def test_another_answer_is_an_honest_error(config: Config, place: int) -> None:
    other = (TEXT[:place], "X", TEXT[place:])
    async with (
        ScriptedUpstream(cut := Breaking(len(WORDS), Close())) as a,
        ScriptedUpstream(telling(other)) as b,
        ScriptedUpstream(telling()) as c,
        running(config, {"m": boxes(a, b, c, kind="openai")}) as gate,
        gate.client() as client,
    ):
        await client.send(asking())
        await read_through(client, cut)
        body, how = await read_broken(client)
        assert (how, body.count(BROKEN), DONE in body) == ("fin", 1, False)
        assert said(body[: body.index(b'data: {"error"')] + DONE) == TEXT
        outcome = await gate.outcome()
        assert (outcome.failure, outcome.fallback, c.requests) == ("cut_answer", False, [])
        assert [attempt.failure for attempt in outcome.attempts] == ["cut_answer", "replay_differs"]
        assert outcome.answered is outcome.attempts[0]
        assert gate.gateway.manager.breaker(gate.deployment("m", "b")).state == "closed"


async def test_an_answer_that_ends_early_is_another(config: Config) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(5, Close())) as a,
        ScriptedUpstream(telling(WORDS[:3])) as b,
        running(config, {"m": boxes(a, b, kind="openai")}) as gate,
    ):
        async with gate.client() as client:
            await client.send(asking())
            await read_through(client, cut)
            body, _ = await read_broken(client)
        assert body.endswith(BROKEN)
        assert await gate.failures() == ["cut_answer", "replay_differs"]


@pytest.mark.parametrize(
    ("end", "failure"), [([Reset()], "cut_answer"), ([OVERLOADED, Send(last_chunk())], "error_answer")]
)
async def test_boxes_may_break_one_after_the_other(config: Config, end: list[Step], failure: str) -> None:
    """A box that reported an error after it had gone on was asked to say it again, which it may do in other words."""
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream(cut_b := Breaking(4, *end, who="b")) as b,
        ScriptedUpstream([Send(status(500, "No"))]) as c,
        ScriptedUpstream(telling(who="d")) as d,
        running(config, {"m": boxes(a, b, c, d)}) as gate,
    ):
        answer = await say_through(gate, asking(max_tokens=100), cut, cut_b)
        assert whole(answer), answer.body
        assert d.requests[0].json()["messages"][-1]["content"] == "".join(WORDS[:7])
        assert d.requests[0].json()["max_tokens"] == 93
        attempts = (await gate.outcome()).attempts
        assert [(attempt.rescue, attempt.failure) for attempt in attempts] == [
            (None, "cut_answer"),
            ("continue", failure),
            ("continue", "server_error"),
            ("replay", "server_error"),
            ("continue", None),
        ]


async def test_a_box_that_fails_to_go_on_and_to_say_it_again_has_failed_once(config: Config) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream([Send(status(500, "No"))]) as b,
        ScriptedUpstream(telling(who="c")) as c,
        running(config, {"m": boxes(a, b, c)}, breaker={"failures": 2}) as gate,
    ):
        assert whole(await say_through(gate, asking(), cut))
        assert len(b.requests) == 2
        snapshot = gate.gateway.manager.snapshot
        assert snapshot is not None
        assert snapshot.out == frozenset()


async def test_attempts_are_bounded_where_a_box_is_asked_twice(config: Config) -> None:
    """Each box that refused to continue used to be asked a second time beyond the bound."""
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream([Send(status(400, "No"))]) as no,
        running(config, {"m": {**boxes(a), **refusing(no.url, 5)}}, retries={"attempts": 4}) as gate,
    ):
        async with gate.client() as client:
            await client.send(asking())
            await read_through(client, cut)
            body, _ = await read_broken(client)
        assert body.endswith(BROKEN)
        assert await gate.failures() == ["cut_answer", *["rescue_refused"] * 3]
        assert (await gate.outcome()).rescue is None
        assert len(no.requests) == 3


def refusing(url: str, times: int) -> dict[str, object]:
    entry = {"kind": "vllm", "weight": 0}
    return {f"no-{place}": {"base_url": f"{url}/{place}/v1", **entry} for place in range(times)}


async def test_a_body_that_another_box_cannot_be_sent_ends_as_a_visible_break(config: Config) -> None:
    """The 400 used to be written into the stream, head and all, and the stream ended well."""
    later = {"kind": "openai", "weight": 0, "provider_model_id": "other"}
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": {**boxes(a), "b": {**later, "base_url": b.url}}}) as gate,
    ):
        async with gate.client() as client:
            await client.send(asking(mod_l="m").replace(b"mod_l", b"model"))
            await read_through(client, cut)
            body, how = await read_broken(client)
        assert (body.endswith(BROKEN), body.count(b"HTTP/1.1"), how, b.requests) == (True, 0, "fin", [])
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure) == (200, "cut_answer")


async def test_a_request_that_we_cannot_read_is_not_made_again(config: Config) -> None:
    """Routing passes over what it need not know: here a number beyond all that there are."""
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b)}) as gate,
    ):
        async with gate.client() as client:
            await client.send(asking(seed=10_000).replace(b"10000", b"1e999"))
            await read_through(client, cut)
            body, how = await read_broken(client)
        assert (body.endswith(BROKEN), how, b.requests) == (True, "fin", [])
        assert (await gate.failures()) == ["cut_answer"]


@pytest.mark.parametrize("gone", [[Send(status(503, "No"))], [Close()], [Send(sse_head()), Close()]])
async def test_without_anyone_to_carry_it_on_a_break_is_visible(config: Config, gone: list[Step]) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream(gone) as b,
        running(config, {"m": {**boxes(a, b), "c": {"base_url": refused_url(), "weight": 0}}}) as gate,
    ):
        async with gate.client() as client:
            await client.send(asking())
            await read_through(client, cut)
            body, _ = await read_broken(client)
        assert (body.count(BROKEN), body.count(CONTENT), DONE in body) == (1, 0, False)
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.served_model) == (200, "cut_answer", "m")
        assert outcome.answered is outcome.attempts[0]


async def test_the_trailer_and_the_log_tell_of_a_rescue(config: Config) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b)}) as gate,
        gate.client() as client,
    ):
        await client.send(asking())
        await read_through(client, cut)
        head = await client.read_head()
        assert head.get("trailer") is None  # Node's proxies die of it
        await client.read_until(b"\n\n\r\n0\r\n")
        fields = await client.read_until(b"\r\n\r\n")
        assert fields == b"x-gateway-rescue: continue\r\nx-gateway-deployment: b\r\nx-gateway-attempts: 2\r\n\r\n"
        await client.send(asking())
        assert whole(await client.read_answer())
        await gate.outcome(2)
        record = next(record for record in await gate.log() if record["event"] == "request")
        assert (record["rescue"], record["deployment"], record["status"]) == ("continue", "b", 200)
        assert (record["prompt_tokens"], record["completion_tokens"]) == (PROMPT_TOKENS, len(WORDS))
        assert (record["lost_prompt_tokens"], record["lost_completion_tokens"]) == (PROMPT_TOKENS + 3, 0)
        assert [attempt.get("rescue") for attempt in record["attempts"]] == [None, "continue"]


async def test_a_rescuer_may_be_named_beyond_ascii(config: Config) -> None:
    """Its name in the trailer used to break the stream that it had carried to the end."""
    async with ScriptedUpstream(cut := Breaking(3, Close())) as a, ScriptedUpstream(telling()) as b:
        route = [{"name": "a", "base_url": a.url}, {"name": "bøx", "base_url": b.url, "weight": 0, "kind": "vllm"}]
        config.save("models.yaml", json.dumps({"models": [{"id": "m", "route": route}]}))
        async with running(config) as gate, gate.client() as client:
            await client.send(asking())
            await read_through(client, cut)
            await client.read_until(b"\n\n\r\n0\r\n")
            assert "x-gateway-deployment: bøx\r\n".encode() in await client.read_until(b"\r\n\r\n")
            assert (await gate.outcome()).failure is None


@pytest.mark.parametrize(("kind", "lost"), [("vllm", Usage(PROMPT_TOKENS + 3, 0)), ("openai", Usage(PROMPT_TOKENS, 3))])
@pytest.mark.parametrize("told", [True, False])
async def test_usage_is_that_of_one_unbroken_stream(config: Config, kind: str, lost: Usage, *, told: bool) -> None:
    options: dict[str, object] = {"stream_options": {"include_usage": True}} if told else {}
    async with (
        ScriptedUpstream(cut := Breaking(3, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b, kind=kind)}) as gate,
    ):
        answer = await say_through(gate, asking(**options), cut)
        whole_usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(WORDS)}
        shown = [event["usage"] for event in told_events(answer.body) if "usage" in event]
        assert shown == ([{**whole_usage, "total_tokens": PROMPT_TOKENS + len(WORDS)}] if told else [])
        outcome = await gate.outcome()
        assert (outcome.usage, outcome.lost) == (Usage(**whole_usage), lost)


@pytest.mark.parametrize(
    ("policy", "rescues"), [("on", [None, "continue"]), ("replay", [None, "replay"]), ("off", [None])]
)
async def test_rescue_is_set_by_model(config: Config, policy: str, rescues: list[str | None]) -> None:
    async with ScriptedUpstream(cut := Breaking(3, Close())) as a, ScriptedUpstream(telling()) as b:
        route = [{"name": "a", "base_url": a.url}, {"name": "b", "base_url": b.url, "weight": 0, "kind": "vllm"}]
        config.save("models.yaml", json.dumps({"models": [{"id": "m", "route": route, "rescue": policy}]}))
        async with running(config) as gate:
            if policy == "off":
                async with gate.client() as client:
                    await client.send(asking())
                    await read_through(client, cut)
                    body, _ = await read_broken(client)
                assert body.endswith(BROKEN)
            else:
                assert whole(await say_through(gate, asking(), cut))
            assert [attempt.rescue for attempt in (await gate.outcome()).attempts] == rescues


@pytest.mark.parametrize(
    ("fields", "rescues"),
    [
        ({"n": 1, "logprobs": False, "response_format": {"type": "text"}}, ["continue"]),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, ["replay"]),
        ({"guided_regex": ".*"}, ["replay"]),
        ({"n": 2}, []),
        ({"logprobs": True}, []),
        ({"messages": "odd"}, ["replay"]),
    ],
)
async def test_what_is_asked_for_decides(config: Config, fields: dict[str, Any], rescues: list[str]) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT)), Pause(go_on), Close()]) as a,
        ScriptedUpstream([Send(sse_head() + chunk(CONTENT + FINISH + DONE) + last_chunk())]) as b,
        running(config, {"m": boxes(a, b)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True, **{"messages": QUESTION, **fields}))
        await until(lambda: CONTENT in client.raw)
        go_on.set()
        await until(lambda: bool(gate.outcomes))
        assert [attempt.rescue for attempt in gate.outcomes[0].attempts][1:] == rescues


def tool(*parts: tuple[str | None, str | None], who: str) -> list[bytes]:
    """Write a tool call's events, a name and arguments each."""
    return [
        sse(json.dumps({"id": who, "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}))
        for name, arguments in parts
        for call in [
            {"index": 0, "function": {"arguments": arguments or ""}}
            | ({"id": f"call-{who}", "type": "function"} if name else {})
        ]
        if not name or call["function"].update(name=name) is None  # type: ignore[attr-defined]
    ]


async def test_a_tool_call_that_has_begun_is_said_again(config: Config) -> None:
    go_on = asyncio.Event()
    first = tool(("look", None), (None, '{"at"'), (None, ": "), who="a")
    second = tool(("look", '{"at": "'), (None, 'it"}'), who="b")
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(b"".join(first))), Pause(go_on), Close()]) as a,
        ScriptedUpstream([Send(sse_head() + chunk(b"".join([*second, FINISH, DONE])) + last_chunk())]) as b,
        running(config, {"m": boxes(a, b)}) as gate,
        gate.client() as client,
    ):
        await client.send(asking())
        await until(lambda: first[-1] in client.raw)
        go_on.set()
        told = told_events((await client.read_answer()).body)
        calls = [call for event in told for call in event["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join(call["function"]["arguments"] for call in calls) == '{"at": "it"}'
        assert [call["function"]["name"] for call in calls if "name" in call["function"]] == ["look"]
        assert [call["id"] for call in calls if "id" in call] == ["call-a"]
        assert [attempt.rescue for attempt in (await gate.outcome()).attempts] == [None, "replay"]


@pytest.mark.parametrize("kind", ["vllm", "openai"])
async def test_a_completion_is_continued_by_its_prompt(config: Config, kind: str) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(4, Close())) as a,
        ScriptedUpstream(telling()) as b,
        running(config, {"m": boxes(a, b, kind=kind)}) as gate,
    ):
        body = {"model": "m", "stream": True, "prompt": "say it: ", "max_tokens": 12}
        answer = await say_through(gate, post("/v1/completions", body), cut)
        assert said(answer.body) == TEXT
        assert b.requests[0].json()["prompt"] == "say it: " + "".join(WORDS[:4])
        assert b.requests[0].json()["max_tokens"] == 8
        assert (await gate.outcome()).rescue == "continue"


async def test_a_fallback_model_carries_on(config: Config) -> None:
    async with ScriptedUpstream(cut := Breaking(4, Close())) as a, ScriptedUpstream(telling()) as b:
        route = [{"name": "a", "base_url": a.url}]
        other = {"id": "n", "route": [{"name": "b", "base_url": b.url, "kind": "vllm"}]}
        models = [{"id": "m", "route": route, "fallbacks": ["n"]}, other]
        config.save("models.yaml", json.dumps({"models": models}))
        async with running(config) as gate:
            answer = await say_through(gate, asking(), cut)
            assert whole(answer)
            assert {event["model"] for event in told_events(answer.body)} == {"m", "n"}
            assert (await gate.outcome()).served_model == "n"


@pytest.mark.parametrize(
    ("answer", "failure"),
    [(json_answer({"choices": []}), "rescue_refused"), (status(204, "No Content"), "empty_answer")],
)
async def test_what_is_no_stream_carries_nothing_on(config: Config, answer: bytes, failure: str) -> None:
    async with (
        ScriptedUpstream(cut := Breaking(4, Close())) as a,
        ScriptedUpstream([Send(answer)]) as b,
        ScriptedUpstream(telling()) as c,
        running(config, {"m": boxes(a, b, c, kind="openai")}) as gate,
    ):
        assert whole(await say_through(gate, asking(), cut))
        assert await gate.failures() == ["cut_answer", failure, None]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_in_mid_rescue_is_noticed(config: Config, *, begun: bool) -> None:
    def script(_: int, request: Request) -> Sequence[Step]:
        told = events(request, who="b")
        return [Send(sse_head() + chunk(b"".join(told[:2]))), Hang()] if begun else [Hang()]

    async with (
        ScriptedUpstream(cut := Breaking(4, Close())) as a,
        ScriptedUpstream(script) as b,
        running(config, {"m": boxes(a, b)}) as gate,
    ):
        async with gate.client() as client:
            await client.send(asking())
            await read_through(client, cut)
            await b.arrived()
            if begun:
                await until(lambda: WORDS[4].encode() in client.raw)
        await b.closed_by_peer()
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure) == (499, "client_left")
        assert [attempt.failure for attempt in outcome.attempts] == ["cut_answer", "client_left"]


async def test_malformed_events_are_dropped_and_counted(config: Config) -> None:
    bad = sse("{") + b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(bad + CONTENT + bad + CONTENT + FINISH + DONE) + last_chunk())]) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        assert (await gate.say(asking())).body == CONTENT * 2 + FINISH + DONE
        assert ((await gate.outcome()).malformed_events, await gate.failures()) == (4, [None])
        record = next(record for record in await gate.log() if record["event"] == "request")
        assert record["malformed_events"] == 4


async def test_usage_is_asked_for_and_hidden(config: Config) -> None:
    async with (
        ScriptedUpstream(telling(who="a")) as a,
        running(config, {"m": chain(a.url)}) as gate,
    ):
        answer = await gate.say(asking())
        assert (said(answer.body), b"usage" in answer.body) == (TEXT, False)
        assert (await gate.outcome()).usage == Usage(PROMPT_TOKENS, len(WORDS))
        await gate.say(asking(stream_options={"include_usage": False}))
        assert a.requests[1].json()["stream_options"] == {"include_usage": False}
        assert (await gate.outcome(2)).usage is None
        await gate.post({"model": "m", "messages": QUESTION})
        assert "stream_options" not in a.requests[2].json()


def generation(gate: Running) -> int:
    """Give the generation of the configuration in force."""
    snapshot = gate.gateway.manager.snapshot
    assert snapshot is not None
    return snapshot.generation


def knowing_no_options(code: int) -> Script:
    """Make the script of a box that refuses `stream_options` with this status."""

    def script(_: int, request: Request) -> Sequence[Step]:
        if "stream_options" in request.json():
            detail = [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]
            return [Send(json_answer({"detail": detail}, code))]
        return telling(who="a")(0, request)

    return script


@pytest.mark.parametrize("code", [400, 422])
async def test_a_box_that_does_not_know_stream_options_is_asked_without(config: Config, code: int) -> None:
    async with ScriptedUpstream(knowing_no_options(code)) as a, running(config, {"m": chain(a.url)}) as gate:
        for _ in range(2):
            assert said((await gate.say(asking())).body) == TEXT
        assert len(a.requests) == 3
        assert [attempt.failure for attempt in (await gate.outcome(2)).attempts] == [None]
        own = await gate.say(asking(stream_options={"include_usage": True}))
        assert own.status == code


async def test_another_box_of_the_same_name_is_asked_for_usage(config: Config) -> None:
    """What was learned of the first one used to hold for its name, as long as the process lived."""
    async with (
        ScriptedUpstream(knowing_no_options(400)) as old,
        ScriptedUpstream(telling(who="a")) as new,
        running(config, {"m": chain(old.url)}) as gate,
    ):
        assert said((await gate.say(asking())).body) == TEXT
        config.models(m=chain(old.url), other=chain(old.url))
        await until(lambda: generation(gate) == 2)
        assert said((await gate.say(asking())).body) == TEXT
        assert len(old.requests) == 3
        config.models(m=chain(new.url))
        await until(lambda: generation(gate) == 3)
        assert said((await gate.say(asking())).body) == TEXT
        assert (await gate.outcome(3)).usage == Usage(PROMPT_TOKENS, len(WORDS))


async def test_a_request_that_outlives_its_box_teaches_nothing_of_the_next_one(config: Config) -> None:
    refuse = asyncio.Event()

    def script(_: int, request: Request) -> Sequence[Step]:
        return [Pause(refuse), *knowing_no_options(400)(0, request)]

    async with (
        ScriptedUpstream(script) as old,
        ScriptedUpstream(telling(who="a")) as new,
        running(config, {"m": chain(old.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(asking())
        await old.arrived()
        config.models(m=chain(new.url))
        await until(lambda: generation(gate) == 2)
        refuse.set()
        assert said((await client.read_answer()).body) == TEXT
        assert said((await gate.say(asking())).body) == TEXT
        assert (await gate.outcome(2)).usage == Usage(PROMPT_TOKENS, len(WORDS))


async def test_a_box_that_quotes_what_it_refuses_is_asked_for_usage_ever_after(config: Config) -> None:
    """vLLM tells of a field that is missing with the whole body, to which stream_options was added."""

    def script(_: int, request: Request) -> Sequence[Step]:
        if "messages" not in request.json():
            message = f"[{{'type': 'missing', 'loc': ('body', 'messages'), 'input': {request.json()}}}]"
            return [Send(json_answer({"error": {"message": message, "code": 400}}, 400))]
        return telling(who="a")(0, request)

    async with ScriptedUpstream(script) as a, running(config, {"m": chain(a.url)}) as gate:
        refused = await gate.say(ask(stream=True))
        assert (refused.status, b"missing" in refused.body, b"stream_options" in refused.body) == (400, True, False)
        assert said((await gate.say(asking())).body) == TEXT
        assert (await gate.outcome(2)).usage == Usage(PROMPT_TOKENS, len(WORDS))
