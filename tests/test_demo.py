"""The demo, as a newcomer meets it: what it prints is taken at its word."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.api.openai import Limits
from gateway.config.load import ConfigFiles, parse, read
from gateway.demo import demo, write_config
from gateway.lifecycle import CannotListenError, CannotServeError, Listen
from tests.running import Process, becomes, until
from tests.shell import Curl, commands

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")


def edit(file: Path, old: str, new: str) -> None:
    """Edit in place, as a careless editor does."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


async def hurry(routing: Curl) -> None:
    """Let the demo's boxes answer at once; their pace is for people."""
    endpoints = {each["endpoint"] for model in (await routing.run())["models"] for each in model["deployments"]}
    for endpoint in endpoints:
        await Curl(f"{endpoint}/simulator", {}, '{"first_token": 0, "token_rate": 0}').run()


async def test_what_the_demo_prints_works() -> None:
    async with Process("demo", "--port", "0") as gateway:
        await gateway.said(r"Stop it with Ctrl-C", "stdout")
        told = commands(gateway.stdout)
        [chat, streamed, routing, take_down] = [Curl.of(words) for words in told if words[0] == "curl"]
        [log] = [Path(words[2]) for words in told if words[:2] == ["tail", "-f"]]
        [[edited]] = [words for words in told if len(words) == 1]

        await hurry(routing)
        answers = [await chat.run() for _ in range(5)]
        boxes = [answer["system_fingerprint"] for answer in answers]
        assert (len([name for name in boxes if name.startswith("local-")]), boxes.count("remote")) == (3, 2)
        assert all(f"I am {name}." in str(answer) for name, answer in zip(boxes, answers, strict=True))
        assert (await streamed.run()).endswith("data: [DONE]\n\n")

        file = Path(edited)
        edit(file, "local_fraction: 0.6", "local_fraction: 1.0")

        async def weights() -> dict[str, float]:
            model = next(m for m in (await routing.run())["models"] if m["id"] == "demo-chat")
            return {d["name"]: d["effective_weight"] for d in model["deployments"]}

        await becomes(weights, {"local-a": 0.5, "local-b": 0.5, "remote": 0})
        await take_down.run()
        await becomes(weights, {"local-a": 0, "local-b": 1, "remote": 0})
        assert (await chat.run())["system_fingerprint"] == "local-b"

        def logged() -> list[dict[str, Any]]:
            return [json.loads(line) for line in log.read_bytes().splitlines()]

        await until(lambda: len([record for record in logged() if record["event"] == "request"]) == 7)
        assert {"gateway.started", "config.reloaded", "health.changed"} < {record["event"] for record in logged()}

        gateway.send_signal(signal.SIGINT)
        assert await gateway.ended() == 0
    assert gateway.stderr == "stopped\n"
    assert not file.parent.exists()


async def test_a_taken_port_gives_way_to_a_free_one(tmp_path: Path) -> None:
    folder = tmp_path / "a $folder: #1"
    async with Process("demo", "--port", "0") as first:
        taken = (await first.said(r"http://127\.0\.0\.1:(\d+),", "stdout"))[1]
        async with Process("demo", "--port", taken, "--dir", str(folder)) as second:
            await second.said(r"Stop it with Ctrl-C", "stdout")
            first_line = f"cannot listen on 127.0.0.1:{taken}: address already in use; taking a free port"
            assert second.stdout.splitlines()[0] == first_line
            for curl in [Curl.of(words) for words in commands(second.stdout) if words[0] == "curl"]:
                await curl.run()
            second.send_signal(signal.SIGTERM)
            assert await second.ended() == 0
        first.send_signal(signal.SIGTERM)
        assert await first.ended() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["models.yaml", "output.log", "routing.yaml"]


async def test_an_address_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotListenError, match=r"192\.0\.2\.1:8080"):
        await demo(Listen("192.0.2.1"), Limits(), tmp_path)


def test_a_demos_configuration_is_valid_and_may_be_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        write_config(tmp_path / "new", URLS, tmp_path / "new" / "output.log")
    files = ConfigFiles.of(tmp_path / "new", {})
    loaded = parse(read(files), files, {})
    assert (loaded.faults, loaded.notices) == ((), ())
    assert loaded.routing is not None
    assert loaded.routing.logging.output == str(tmp_path / "new" / "output.log")


@pytest.mark.parametrize("name", ["models.yaml", "routing.yaml"])
async def test_somebody_elses_configuration_is_left_alone(tmp_path: Path, name: str) -> None:
    """`gateway demo --dir config` used to write over what was there."""
    (tmp_path / name).write_text("models: []\n")
    async with Process("demo", "--port", "0", "--dir", str(tmp_path)) as gateway:
        assert await gateway.ended() == 1
    assert gateway.stderr == f"gateway: {tmp_path / name} is not a demo's, give --dir another folder\n"
    assert contents(tmp_path) == {name: "models: []\n"}
    with pytest.raises(CannotServeError):
        write_config(tmp_path, URLS, tmp_path / "output.log")
