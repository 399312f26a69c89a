"""A scripted box that says the same to everyone, as a model without chance would, and can break off anywhere."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal

from tests.execution.support import Running
from tests.fakes.answers import chunk, json_answer, last_chunk, sse, sse_head
from tests.fakes.client import Answer, RawClient
from tests.fakes.upstream import Pause, Request, Send, Step
from tests.running import until

WORDS = ("The", " quick", " brown", " fox", " jumps", " over", " the", " l", "a", "zy", " dög", ".")
TEXT = "".join(WORDS)
PROMPT_TOKENS = 7
_SAID = re.compile(rb'"(?:content|text)":"((?:[^"\\]|\\.)*)"')

Prefill = Literal["heeded", "ignored", "refused"]
Script = Callable[[int, Request], Sequence[Step]]


def events(
    request: Request, words: Sequence[str] = WORDS, *, who: str = "a", prefill: Prefill = "heeded", usage: bool = True
) -> list[bytes]:
    """Write the events that answer a request: a role, a word each, a finish reason, the usage asked for, `[DONE]`."""
    asked = request.json()
    chat = request.target.endswith("/chat/completions")
    given = _given(asked) if prefill == "heeded" else ""
    left = [
        word[max(0, len(given) - end + len(word)) :]
        for word, end in zip(words, accumulate(map(len, words)), strict=True)
    ]
    left = [word for word in left if word]
    frame = {"id": f"id-{who}", "object": "chat.completion.chunk", "created": ord(who), "model": asked["model"]}

    def event(said: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, **({"delta": said} if chat else {"text": said.get("content", "")})}
        return _event({**frame, "choices": [{**choice, "finish_reason": finish}]})

    told = [
        event({"role": "assistant", "content": ""}),
        *(event({"content": word}) for word in left),
        event({}, "stop"),
    ]
    if usage and (asked.get("stream_options") or {}).get("include_usage"):
        read = PROMPT_TOKENS + len(words) - len(left)
        tokens = {"prompt_tokens": read, "completion_tokens": len(left), "total_tokens": read + len(left)}
        told.append(_event({**frame, "choices": [], "usage": tokens}))
    return [*told, sse("[DONE]")]


def telling(words: Sequence[str] = WORDS, *, who: str = "b", prefill: Prefill = "heeded") -> Script:
    """Make the script of a box that answers well, or refuses a text to continue with a 400."""

    def script(_: int, request: Request) -> Sequence[Step]:
        if prefill == "refused" and _given(request.json()):
            return [Send(json_answer({"error": {"message": "no assistant prefill"}}, 400))]
        told = events(request, words, who=who, prefill=prefill)
        return [Send(sse_head() + b"".join(map(chunk, told)) + last_chunk())]

    return script


class Breaking:
    """The script of a box that breaks off after so many words, once `seen` is set: what was sent has been passed on."""

    def __init__(self, after: int, *end: Step, words: Sequence[str] = WORDS, who: str = "a") -> None:
        self.after = after
        self.words = words
        self.seen = asyncio.Event()
        self._end = end
        self._who = who

    def __call__(self, _: int, request: Request) -> Sequence[Step]:
        told = events(request, self.words, who=self._who)[: self.after + 1]
        return [Send(sse_head() + chunk(b"".join(told))), Pause(self.seen), *self._end]


async def read_through(client: RawClient, *breaks: Breaking) -> None:
    """Read until all of these boxes have broken off, each after the client has what it said."""
    words = 0
    for each in breaks:
        words += each.after
        await until(partial(_has_read, client, "".join(each.words[:words])))
        each.seen.set()


def _has_read(client: RawClient, text: str) -> bool:
    return "".join(json.loads(b'"%b"' % found) for found in _SAID.findall(client.raw)) == text


async def say_through(gate: Running, data: bytes, *breaks: Breaking) -> Answer:
    """Send a request that these boxes break off, return the answer."""
    async with gate.client() as client:
        await client.send(data)
        await read_through(client, *breaks)
        return await client.read_answer()


def said(body: bytes) -> str:
    """Join what a client was told."""
    return "".join(_said(choice) for told in told_events(body) for choice in told["choices"])


def told_events(body: bytes) -> list[dict[str, Any]]:
    """Give a stream's events but `[DONE]`, and check that it stands at the end, once."""
    *found, last = (line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: "))
    assert last == b"[DONE]", body
    assert all(each.startswith(b"{") for each in found), body
    return [json.loads(data) for data in found]


def _said(choice: dict[str, Any]) -> str:
    text: str = choice.get("text") or choice.get("delta", {}).get("content") or ""
    return text


def _given(asked: dict[str, Any]) -> str:
    """Give the text that a request wants continued."""
    if "prompt" in asked:
        return str(asked["prompt"]).removeprefix("say it: ")
    last = asked["messages"][-1]
    return str(last["content"]) if last["role"] == "assistant" else ""


def _event(told: dict[str, object]) -> bytes:
    return sse(json.dumps(told, separators=(",", ":")))
