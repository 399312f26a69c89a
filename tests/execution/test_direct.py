"""Requests on a session's own connections, and when the session is asked instead."""

import aiohttp
import pytest

from gateway.execution.answer import AttemptFailedError
from gateway.execution.direct import Direct, is_tested
from gateway.execution.upstream import Call, Transport, Upstream
from gateway.routing.failures import Cause
from tests.execution.support import deployment
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer

CALL = Call("chat/completions", b'{"model": "m"}', {})
BOTH = pytest.mark.parametrize("transport", ["direct", "session"])


@BOTH
async def test_both_ways_send_the_same(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(lambda: 0.0, transport=transport)
        sent: list[str] = []
        answer = await upstream.open(deployment(a.url), CALL, connect_timeout=5, sent=lambda: sent.append(""))
        assert (answer.status, answer.content_type, await answer.read(99)) == (200, "application/json", b"{}")
        assert sent
        assert a.requests[0].values("host") == [a.url.partition("//")[2].partition("/")[0]]
        assert a.requests[0].values("accept-encoding") == ["identity"]
        assert a.requests[0].values("accept") == ["*/*"]
        assert a.requests[0].values("content-length") == [str(len(CALL.body))]
        assert a.requests[0].body == CALL.body
        await upstream.close()


@BOTH
async def test_what_is_asked_for_is_not_overruled(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(lambda: 0.0, transport=transport)
        call = Call(CALL.operation, CALL.body, {"Accept": "text/event-stream"})
        answer = await upstream.open(deployment(a.url), call, connect_timeout=5)
        await answer.read(99)
        assert a.requests[0].values("accept") == ["text/event-stream"]
        await upstream.close()


@BOTH
async def test_a_header_field_cannot_smuggle_another(transport: Transport) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        upstream = Upstream(lambda: 0.0, transport=transport)
        call = Call(CALL.operation, CALL.body, {"x-request-id": "a\r\nauthorization: b"})
        with pytest.raises(ValueError, match="header"):
            await upstream.open(deployment(a.url), call, connect_timeout=5)
        assert a.requests == []
        await upstream.close()


@BOTH
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b"nonsense\r\n\r\n"])
async def test_an_answer_that_is_not_http_is_told_as_such(transport: Transport, head: bytes) -> None:
    async with ScriptedUpstream([Send(head)]) as a:
        upstream = Upstream(lambda: 0.0, transport=transport)
        with pytest.raises(AttemptFailedError) as error:
            await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert error.value.failure.cause is Cause.MALFORMED_ANSWER
        assert error.value.__cause__ is None
        await upstream.close()


@pytest.mark.parametrize(
    "url", ["http://user:key@box/v1", "http://user@box/v1", "ftp://box/v1", "/v1", "http://[::1", "http:///v1"]
)
async def test_the_session_is_asked_where_a_url_is_odd(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        assert Direct(session).place(url) is None


async def test_where_urls_lead_is_kept_for_so_many() -> None:
    async with aiohttp.ClientSession() as session:
        direct = Direct(session)
        first = direct.place("http://box/0")
        assert direct.place("http://box/0") is first
        for n in range(1, 4097):
            direct.place(f"http://box/{n}")
        again = direct.place("http://box/0")
        assert again is not None
        assert again is not first


def test_other_aiohttps_are_asked_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_tested("3.14.5")
    monkeypatch.setattr(aiohttp, "__version__", "3.15.0")
    assert Upstream(lambda: 0.0).transport == "session"


async def test_an_early_hint_is_passed_over() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with ScriptedUpstream([Send(hint + json_answer({}))]) as a:
        upstream = Upstream(lambda: 0.0)
        answer = await upstream.open(deployment(a.url), CALL, connect_timeout=5)
        assert (answer.status, await answer.read(99)) == (200, b"{}")
        await upstream.close()
