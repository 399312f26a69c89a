"""A page of another origin asks the gateway, in a real browser."""

import pytest

from tests.browser.conftest import Blank
from tests.execution.support import CONTENT, DONE, FINISH, chain, running
from tests.fakes.upstream import ScriptedUpstream, Send, chunk, json_answer, last_chunk, sse_head
from tests.running import Config

ASK = """
url => fetch(`${url}/v1/chat/completions`, {
  method: "POST",
  headers: {"content-type": "application/json", "authorization": "Bearer none"},
  body: JSON.stringify({model: "m", stream: true}),
}).then(async answer => [await answer.text(), answer.headers.get("x-gateway-deployment")], () => "refused")
"""
SNEAK = """
url => fetch(`${url}/v1/chat/completions`, {
  method: "POST", mode: "no-cors", body: new Blob([JSON.stringify({model: "m"})]),
}).then(answer => answer.type)
"""


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_a_page_asks_where_it_may(config: Config, blank: Blank, is_allowed: bool) -> None:  # noqa: FBT001 - a case
    stream = CONTENT + FINISH + DONE
    async with (
        ScriptedUpstream([Send(sse_head() + chunk(stream) + last_chunk())]) as box,
        ScriptedUpstream([Send(json_answer({}))]) as site,
    ):
        allowed = frozenset({site.url} if is_allowed else {"https://elsewhere.example.com"})
        async with running(config, {"m": chain(box.url)}, cors_origins=allowed) as gate:
            page = await blank()
            await page.goto(site.url)
            asked = await page.evaluate(ASK, gate.url)
            assert asked == ([stream.decode(), "a"] if is_allowed else "refused")
            assert await page.evaluate(SNEAK, gate.url) == "opaque"
            assert len(box.requests) == is_allowed
