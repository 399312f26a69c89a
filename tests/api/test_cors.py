"""Pages of other origins, as their browsers put it."""

import pytest

from gateway.api.cors import origins
from tests.execution.support import CHAT, CONTENT, DONE, FINISH, chain, error_of, running
from tests.fakes.client import Answer, get, post
from tests.fakes.upstream import ScriptedUpstream, Send, chunk, json_answer, last_chunk, refused_url, sse_head
from tests.running import Config

PAGE = "https://chat.example.com"
OTHER = "https://evil.example.com"
PREFLIGHT = (
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type"),
)


def preflight(origin: str, target: str = CHAT) -> bytes:
    return get(target, (("origin", origin), *PREFLIGHT)).replace(b"GET ", b"OPTIONS ", 1)


def told(answer: Answer) -> dict[str, str]:
    """What an answer tells a browser of other origins."""
    fields = ((name.lower(), value) for name, value in answer.head.headers)
    return {name: value for name, value in fields if name.startswith("access-control-") or name == "vary"}


@pytest.mark.parametrize(
    ("allowed", "origin", "named"),
    [({PAGE}, PAGE, PAGE), ({"app://x", PAGE}, PAGE.upper(), PAGE.upper()), ({"*"}, "null", "*")],
)
async def test_a_page_of_an_allowed_origin_may_ask_and_read(
    config: Config, allowed: set[str], origin: str, named: str
) -> None:
    steps = [Send(sse_head() + chunk(CONTENT + FINISH + DONE) + last_chunk())]
    async with (
        ScriptedUpstream(lambda index, _: [Send(json_answer({}))] if index else steps) as a,
        running(config, {"m": chain(a.url)}, cors_origins=frozenset(allowed)) as gate,
    ):
        answer = await gate.say(preflight(origin))
        vary = {} if named == "*" else {"vary": "Origin"}
        reads = {"access-control-allow-origin": named, "access-control-expose-headers": "*"} | vary
        assert (answer.status, answer.body) == (204, b"")
        assert told(answer) == reads | {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "authorization,content-type",
            "access-control-max-age": "7200",
        }
        said = (("origin", origin), ("authorization", "Bearer secret"))
        stream = await gate.say(post(CHAT, {"model": "m", "stream": True}, said))
        assert (stream.status, told(stream), b"hi" in stream.body) == (200, reads, True)
        whole = await gate.say(post(CHAT, {"model": "m"}, said))
        assert (whole.status, told(whole)) == (200, reads)
        unknown = await gate.say(post(CHAT, {"model": "x"}, said))
        assert (unknown.status, told(unknown)) == (404, reads)
        listed = await gate.say(get("/v1/models", said))
        assert (listed.status, told(listed)) == (200, reads)
        assert told(await gate.say(get("/routing", said))) == {}


@pytest.mark.parametrize("allowed", [set(), {PAGE}])
async def test_a_page_of_another_origin_is_not_answered(config: Config, allowed: set[str]) -> None:
    async with running(config, {"m": chain(refused_url())}, cors_origins=frozenset(allowed)) as gate:
        for target in (CHAT, "/v1/models", "/routing"):
            answer = await gate.say(preflight(OTHER, target))
            assert (answer.status, told(answer).keys() - {"vary"}) == (405, set())
        listed = await gate.say(get("/v1/models", (("origin", OTHER),)))
        assert (listed.status, told(listed)) == (200, {"vary": "Origin"} if allowed else {})


async def test_who_is_no_page_is_answered_as_ever(config: Config) -> None:
    async with running(config, {"m": chain(refused_url())}, cors_origins=frozenset({PAGE})) as gate:
        options = await gate.say(get(CHAT, (("origin", PAGE),)).replace(b"GET ", b"OPTIONS ", 1))
        assert (options.status, options.head.get("allow")) == (405, "POST")
        plain = await gate.say(get(CHAT, (("origin", PAGE), PREFLIGHT[0])).replace(b"GET ", b"OPTIONS ", 1))
        assert (plain.status, "access-control-allow-headers" in told(plain)) == (204, False)
        listed = await gate.say(get("/v1/models"))
        assert told(listed) == {"vary": "Origin"}


async def test_what_a_browser_sends_without_asking_before_is_no_json(config: Config) -> None:
    body = b'{"model":"m"}'
    head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\norigin: {OTHER}\r\ncontent-length: {len(body)}\r\n\r\n"
    async with ScriptedUpstream() as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.say(head.encode() + body)
        assert (answer.status, answer.json()["error"]["message"]) == (
            400,
            "content-type: found none, expected application/json",
        )
        assert a.requests == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("*", {"*"}),
        (PAGE, {PAGE}),
        ("https://Chat.Example.com/ , http://localhost:3000", {PAGE, "http://localhost:3000"}),
        ("app://obsidian.md,http://[::1]:3000", {"app://obsidian.md", "http://[::1]:3000"}),
        (f"{PAGE}:443/,http://[::1]:80", {PAGE, "http://[::1]"}),
        ("https://a:80,http://a:443,http://b:8080", {"https://a:80", "http://a:443", "http://b:8080"}),
    ],
)
def test_origins_are_read(text: str, found: set[str]) -> None:
    assert origins(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("Example.com", "example.com"),
        (f"{PAGE}/chat", f"{PAGE}/chat"),
        (f"{PAGE},", ""),
        ("https://", "https:/"),
        ("https://a b", "https://a b"),
        ("https://me@a", "https://me@a"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://bücher.example", "https://bücher.example"),
    ],
)
def test_what_is_no_origin_is_told(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=r"^found ") as error:
        origins(text)
    assert str(error.value) == f"found {found!r}, expected an origin such as https://chat.example.com, or *"


REBOUND = "evil.example.com:8080"


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", set()),
        ("[::1]:8080", "http://[::1]:8080", set()),
        ("localhost:8080", "http://localhost:8080", set()),
        ("app.localhost", "http://app.localhost", set()),
        ("gpu-box:8080", "http://gpu-box:8080", set()),
        ("llm.example.com", "https://llm.example.com", set()),
        (REBOUND, f"http://{REBOUND}", {f"http://{REBOUND}"}),
        (REBOUND, f"http://{REBOUND}", {"*"}),
        (REBOUND, "", set()),
    ],
)
async def test_pages_that_are_let_be(config: Config, host: str, origin: str, allowed: set[str]) -> None:
    async with (
        ScriptedUpstream([Send(json_answer({}))]) as a,
        running(config, {"m": chain(a.url)}, cors_origins=frozenset(allowed)) as gate,
    ):
        said = post(CHAT, {"model": "m"}, [("origin", origin)] if origin else [])
        assert (await gate.say(said.replace(b"host: gateway", b"host: " + host.encode()))).status == 200


@pytest.mark.parametrize("allowed", [set(), {PAGE}])
async def test_a_page_whose_own_name_leads_here_is_refused(config: Config, allowed: set[str]) -> None:
    """To its browser it was of the same origin, so that it was not asked before."""
    async with running(config, {"m": chain(refused_url())}, cors_origins=frozenset(allowed)) as gate:
        said = post(CHAT, {"model": "m"}, [("origin", f"http://{REBOUND.upper()}")])
        answer = await gate.say(said.replace(b"host: gateway", b"host: " + REBOUND.encode()))
        assert (answer.status, error_of(answer)["code"]) == (403, "origin_not_allowed")
        assert (await gate.outcome()).failure == "origin_not_allowed"
