"""Reads the commands that the demo and the README tell people to type, so that tests can do what they say."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Curl:
    """A curl command, as far as the demo uses it."""

    url: str
    headers: dict[str, str]
    data: str | None

    @classmethod
    def of(cls, words: Sequence[str]) -> "Curl":
        curl, unbuffered, url, *options = words
        assert (curl, unbuffered in {"-s", "-N"}) == ("curl", True)
        given = dict(zip(options[::2], options[1::2], strict=True))
        headers = dict([given.pop("-H").split(": ")]) if "-H" in given else {}
        data = given.pop("-d", None)
        assert given == {}
        # what curl says of a body when it is told nothing
        return cls(url, {"content-type": "application/x-www-form-urlencoded"} | headers if data else headers, data)

    async def run(self) -> Any:
        """Do what curl would; give the answer's JSON, or its text."""
        method = "GET" if self.data is None else "POST"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url, headers=self.headers, data=self.data) as answer,
        ):
            assert answer.status == 200, await answer.text()
            is_json = answer.content_type == "application/json"
            return await answer.json() if is_json else await answer.text()


def commands(text: str) -> list[list[str]]:
    """Find the commands in what the demo prints, where they are indented."""
    return [words for line in lines(text) if line.startswith("  ") and (words := shlex.split(line))]


def lines(text: str) -> list[str]:
    """Split a shell text; a backslash continues a line."""
    return text.replace("\\\n", " ").splitlines()
