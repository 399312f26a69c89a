"""`gateway check --diff`, against gateways that serve."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from gateway.asking import UnreachableError, default_url, is_url
from gateway.check import in_force, wants_colour
from gateway.cli import main
from tests.execution.support import Running, running
from tests.fakes.connection import PATIENCE
from tests.fakes.upstream import Close, Hang, ScriptedUpstream, Send, Step, json_answer, refused_url, status
from tests.running import Config

A, B, CLOUD = "http://127.0.0.1:9001", "http://127.0.0.1:9002", "https://cloud.example/v1"
KEY = "sk-canary-0123456789"

Check = Callable[..., Awaitable[tuple[int, list[str]]]]


@pytest.fixture
def check(config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Run `gateway check --diff` in a thread; give its exit code, and the lines that it printed."""
    monkeypatch.delenv("CLOUD_KEY", raising=False)

    async def run(url: str, *more: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        arguments = ("check", "--diff", "--url", url, "--config-dir", str(config.path), *more)
        code = await asyncio.to_thread(main, arguments)
        said = capsys.readouterr()
        assert KEY not in said.out + said.err
        return code, (said.out or said.err).splitlines()

    return run


def configure(config: Config, fraction: float = 0.6, key: str = KEY, **more: object) -> None:
    cloud = {"kind": "openai", "base_url": CLOUD, "api_key": key}
    config.models(llama={"box-a": A, "box-b": B, "cloud": cloud})
    config.routing(
        routing_parameter={"local_fraction": fraction},
        local_deployment=[{"endpoint": url, "models": ["llama"]} for url in (A, B)],
        remote_deployment=[{"endpoint": CLOUD, "models": ["llama"]}],
        **more,
    )


def follow_no_more(gate: Running) -> None:
    """Let a gateway keep its configuration, whatever is saved."""
    following = gate.gateway._following
    assert following is not None
    following.cancel()


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[str]:
    """Serve what `configure` writes, and follow it no more; give the address."""
    configure(config)
    async with running(config, None, **json.loads((config.path / "routing.yaml").read_text())) as gate:
        follow_no_more(gate)
        yield gate.url


async def test_without_a_change_it_says_so(config: Config, check: Check) -> None:
    async with served(config) as url:
        assert await check(url) == (0, [f"no changes to generation 1 at {url}; keys are not compared"])
        configure(config, key="sk-canary-0123456789-other")
        assert (await check(url + "/"))[1] == [f"no changes to generation 1 at {url}/; keys are not compared"]


async def test_a_shift_of_weights_is_told_by_deployment(config: Config, check: Check) -> None:
    async with served(config) as url:
        configure(config, fraction=1.0)
        assert await check(url) == (
            0,
            [
                "  llama",
                "    ~ box-a  weight 0.3 -> 0.5",
                "    ~ box-b  weight 0.3 -> 0.5",
                "    ~ cloud  weight 0.4 -> 0, becomes a fallback",
                "  settings",
                "    ~ routing_parameter.local_fraction: 0.6 -> 1",
                "",
                f"5 changes to generation 1 at {url}; keys are not compared",
            ],
        )


async def test_what_comes_and_goes_has_its_sign(config: Config, check: Check) -> None:
    async with served(config) as url:
        config.models(llama={"box-a": A, "box-c": B.replace("9002", "9003")}, other={"box": A})
        config.routing()
        code, lines = await check(url)
        assert (code, lines) == (
            0,
            [
                "  llama",
                "    ~ box-a  group local -> unlisted, weight 0.3 -> 0.5",
                "    + box-c  unlisted at http://127.0.0.1:9003, weight 0.5",
                "    - cloud",
                "    - box-b",
                "+ other",
                "    + box  unlisted at http://127.0.0.1:9001, weight 1",
                "  settings",
                "    ~ routing_parameter.local_fraction: 0.6 -> none",
                "",
                f"8 changes to generation 1 at {url}; keys are not compared",
            ],
        )
        config.models(other={"box": A})
        assert (await check(url))[1][2:6] == ["- llama", "    - cloud", "    - box-a", "    - box-b"]


async def test_nothing_that_a_terminal_obeys_is_printed(config: Config, check: Check) -> None:
    async with served(config) as url:
        plan = msgspec.json.encode(await asyncio.to_thread(in_force, url)).replace(b"box-a", b"\\u001b[2J")
        async with ScriptedUpstream([Send(json_answer(json.loads(plan)))]) as other:
            lines = (await check(other.url))[1]
            assert "    - \\x1b[2J" in lines
            assert all(line.isprintable() for line in lines)


async def test_what_becomes_inactive_names_its_variable(config: Config, check: Check) -> None:
    async with served(config) as url:
        configure(config, key="${CLOUD_KEY}", timeout=3)
        code, (warning, *lines) = await check(url)
        assert code == 0
        assert warning.startswith(f"warning: {config.path / 'models.yaml'}:")
        assert lines == [
            "",
            "  llama",
            "    ~ box-a  weight 0.3 -> 0.5",
            "    ~ box-b  weight 0.3 -> 0.5",
            "    - cloud  becomes inactive, CLOUD_KEY is not set",
            "  settings",
            f"    ~ timeout: {PATIENCE:g} -> 3",
            "",
            f"5 changes to generation 1 at {url}; keys are not compared",
            "variables are those of this shell and the .env: the gateway's own may differ",
        ]


async def test_one_change_of_a_model_alone(config: Config, check: Check) -> None:
    async with served(config) as url:
        text = (config.path / "models.yaml").read_text()
        config.save("models.yaml", text.replace('"id": "llama"', '"id": "llama", "aliases": ["l3"]'))
        assert (await check(url))[1] == [
            "  llama",
            "    ~ aliases none -> l3",
            "",
            f"1 change to generation 1 at {url}; keys are not compared",
        ]


async def test_another_order_of_fallbacks_is_told(config: Config, check: Check) -> None:
    def order(*fallbacks: str) -> None:
        config.models(m={"main": A} | {name: {"base_url": f"http://{name}", "weight": 0} for name in fallbacks})

    order("cheap", "dear")
    async with running(config, None) as gate:
        follow_no_more(gate)
        order("dear", "cheap")
        text, more = await check(gate.url), json.loads("\n".join((await check(gate.url, "--json"))[1]))
        assert text[1][:2] == ["  m", "    ~ tried in the order main, dear, cheap"]
        assert more["changes"] == {"models_changed": ["m: tried in the order main, dear, cheap"]}


async def test_as_json_it_has_the_fields_of_the_log(config: Config, check: Check) -> None:
    async with served(config) as url:
        configure(config, fraction=1.0)
        code, lines = await check(url, "--json")
        told = json.loads("\n".join(lines))
        assert (code, told["faults"], told["warnings"]) == (0, [], [])
        assert (told["running"]["url"], told["running"]["generation"]) == (url, 1)
        assert told["changes"] == {
            "weights": ["llama/box-a: 0.3 -> 0.5", "llama/box-b: 0.3 -> 0.5", "llama/cloud: 0.4 -> 0"],
            "fallback": ["llama/cloud: becomes a fallback"],
            "settings": ["routing_parameter.local_fraction: 0.6 -> 1"],
        }


async def test_faults_are_told_as_without_it(config: Config, check: Check) -> None:
    config.save("models.yaml", "models: []\n")
    code, lines = await check(refused_url())
    assert (code, lines[-1]) == (1, "1 fault")
    assert lines[0].startswith(f"{config.path / 'models.yaml'}:1:")


async def test_a_client_may_wait_for_a_variable_here_alone(config: Config, check: Check) -> None:
    clients = [{"name": "alice", "api_key": "${ALICE_KEY_OF_NOBODY}"}]
    config.models(llama={"box-a": A})
    async with running(config, environ={"ALICE_KEY_OF_NOBODY": "key"}, clients=clients) as gate:
        assert (await check(gate.url))[1][-2:] == [
            f"1 change to generation 1 at {gate.url}; keys are not compared",
            "variables are those of this shell and the .env: the gateway's own may differ",
        ]


async def test_a_gateway_without_a_configuration_gets_everything(config: Config, check: Check) -> None:
    config.save("models.yaml", "models: []\n")
    async with running(config) as gate:
        follow_no_more(gate)
        config.models(llama={"box-a": A})
        assert (await check(gate.url))[1] == [
            "+ llama",
            "    + box-a  unlisted at http://127.0.0.1:9001, weight 1",
            "",
            f"2 changes to {gate.url}, which has no configuration yet; keys are not compared",
        ]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([Send(status(404, "Not Found"))], "status 404, expected the plan of a gateway"),
        ([Send(json_answer({"models": []}))], "the answer is not the plan of a gateway of this version"),
        ([Send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")], "the answer is not the plan"),
        ([Send(b'HTTP/1.1 200 OK\r\n\r\n{"hash":"\xff"}'), Close()], "the answer is not the plan"),
        ([Send(b"HTTP/1.1 200 OK\r\n\r\n" + b'{"x":' * 99_999), Close()], "the answer is not the plan"),
        ([Send(b"nonsense\r\n\r\n"), Close()], "BadStatusLine"),
        ([Close()], "RemoteDisconnected"),
    ],
)
async def test_what_is_no_gateway_is_told_apart(config: Config, check: Check, answer: list[Step], told: str) -> None:
    configure(config)
    async with ScriptedUpstream(answer) as other:
        code, (line,) = await check(other.url)
        assert (code, told in line, line.startswith("gateway: ")) == (1, True, True), line


async def test_a_gateway_that_is_not_there_is_one_line(config: Config, check: Check) -> None:
    configure(config)
    url = refused_url()
    assert await check(url) == (1, [f"gateway: cannot ask {url}/routing/plan: connection refused"])
    for url in ("http://nowhere.invalid:1", "http://no..where:1"):
        code, (line,) = await check(url)
        assert code == 1
        assert line.startswith(f"gateway: cannot ask {url}/routing/plan: ")


@pytest.mark.parametrize("url", ["http://a..b", "http://localhost:1/\u00fc"])
async def test_an_address_that_cannot_be_asked_is_one_line(config: Config, check: Check, url: str) -> None:
    configure(config)
    told = f"gateway: cannot ask {url}/routing/plan: its host is malformed, or there is more than ASCII in it"
    assert await check(url) == (1, [told])


async def test_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.check._TIMEOUT", 0.05)
    async with ScriptedUpstream([Hang()]) as silent:
        with pytest.raises(UnreachableError, match=r"no answer in 0\.05 s$"):
            await asyncio.to_thread(in_force, silent.url)


async def test_colour_is_for_terminals(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(config) as url:
        config.models(llama={"box-a": A}, other={"box": A})
        config.routing()
        monkeypatch.setattr("gateway.check.wants_colour", lambda *_: True)
        await asyncio.to_thread(main, ["check", "--diff", "--url", url, "--config-dir", str(config.path)])
        lines = capsys.readouterr().out.splitlines()
    assert "\x1b[33m    ~ box-a  group local -> unlisted, weight 0.3 -> 1\x1b[0m" in lines
    assert "\x1b[31m    - box-b\x1b[0m" in lines
    assert "\x1b[32m+ other\x1b[0m" in lines
    assert "  llama" in lines


@pytest.mark.parametrize(
    ("terminal", "environ", "wanted"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_who_wants_colour(*, terminal: bool, environ: dict[str, str], wanted: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    assert wants_colour(Stream(), environ) is wanted


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"PORT": "9000", "GATEWAY_PORT": "9001", "GATEWAY_HOST": "0.0.0.0"}, "http://127.0.0.1:9001"),
        ({"GATEWAY_HOST": "gpu-1", "GATEWAY_PORT": "tcp://10.0.0.1:80"}, "http://gpu-1:8080"),
        ({"GATEWAY_HOST": "::1"}, "http://[::1]:8080"),
        ({"GATEWAY_HOST": "::"}, "http://[::1]:8080"),
        ({"GATEWAY_HOST": "[::]"}, "http://[::1]:8080"),
        ({"GATEWAY_HOST": "0.0.0.0, ::"}, "http://127.0.0.1:8080"),
    ],
)
def test_the_default_address_is_where_serve_would_be(environ: dict[str, str], url: str) -> None:
    assert default_url(environ) == url


@pytest.mark.parametrize(
    "text", ["", "gpu-1", "gpu-1:8080", "ftp://gpu-1", "http://", "http://a:b", "http://[", "http://a:0", "http://a b"]
)
def test_what_is_no_address(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_url(text)
    for command in ("check", "stats"):
        with pytest.raises(SystemExit):
            main([command, f"--url={text}"])
        assert f"found {text!r}, expected an address such as http://127.0.0.1:8080" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["http://me:secret@gpu-1:8080", "http://me:sec/ret@gpu-1", "me:secret@gpu-1"])
def test_an_address_with_a_password_is_none_and_is_not_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "stats"):
        with pytest.raises(SystemExit):
            main([command, f"--url={text}"])
        told = capsys.readouterr().err
        assert "found '...', expected an address such as http://127.0.0.1:8080" in told
        assert "ret" not in told
