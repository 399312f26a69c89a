"""The README is taken at its word: its commands are run and its files are served."""

import asyncio
import re
import shlex
import signal
import sys
from pathlib import Path

import gateway
from gateway.simulator import Box
from tests.conftest import MakeBox
from tests.running import Process, becomes, until, whole_lines
from tests.shell import Curl, lines

ROOT = Path(gateway.__file__).parents[1]
README = (ROOT / "README.md").read_text()
SERVED = "http://127.0.0.1:8080"


def blocks(language: str, heading: str) -> list[str]:
    """Find a section's code blocks of one language."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def curls(block: str, url: str) -> list[Curl]:
    commands = [shlex.split(line, comments=True) for line in lines(block)]
    return [Curl.of([word.replace(SERVED, url) for word in words]) for words in commands if words[0] == "curl"]


async def run(*command: str, cwd: Path) -> str:
    """Run a command; give what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=cwd)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def test_the_first_answer_stands_within_30_lines() -> None:
    [start, ask] = blocks("sh", "First answer")
    assert start == "scripts/run\n"
    assert (ROOT / "scripts" / "run").exists()
    assert README[: README.index(ask) + len(ask)].count("\n") <= 30


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


async def test_the_first_answer_comes() -> None:
    [_, ask] = blocks("sh", "First answer")
    async with Process("demo", "--port", "0") as demo:
        url = (await demo.said(r"serves on (http://[^,]+),", "stdout"))[1]
        [curl] = curls(ask, url)
        answers = await asyncio.gather(*(curl.run() for _ in range(10)))
        assert sum("I am local-" in str(answer) for answer in answers) == 6
        demo.send_signal(signal.SIGINT)
        assert await demo.ended() == 0


async def test_a_box_a_provider_and_a_further_box(tmp_path: Path, make_box: MakeBox) -> None:
    told = {
        "http://localhost:8000": await make_box(Box("first", ("my-model",))),
        "https://api.example.com/v1": await make_box(Box("provider", ("their-name-of-it",), api_key="provider-key")),
        "http://gpu-2:8000": await make_box(Box("second", ("my-model",))),
    }

    def ours(text: str) -> str:
        for url, box in told.items():
            text = text.replace(url, box)
        return text

    *write, serve = blocks("sh", "In front of your box")[0].splitlines()
    assert len(write) + 1 == 5
    await run("bash", "-euc", ours("\n".join(write)), cwd=tmp_path)
    script, *flags = shlex.split(serve)
    assert script == "scripts/run"
    async with Process("serve", *flags, "--port", "0", cwd=tmp_path) as process:
        url = await process.url()
        [snippet] = blocks("python", "In front of your box")
        said = await run(sys.executable, "-c", snippet.replace(SERVED, url), cwd=tmp_path)
        assert said.startswith("I am first.")
        [stream] = curls(blocks("sh", "In front of your box")[1], url)
        assert (await stream.run()).endswith("data: [DONE]\n\n")

        [split, entry] = [ours(block) for block in blocks("yaml", "Add a provider, then a box")]
        [look] = blocks("sh", "Add a provider, then a box")
        [routing, health] = curls(look, url)

        async def weights() -> dict[str, float]:
            [model] = (await routing.run())["models"]
            return {each["endpoint"]: each["effective_weight"] for each in model["deployments"]}

        async def are(*expected: float) -> None:
            await becomes(weights, dict(zip(told.values(), expected, strict=False)))

        file = tmp_path / "my-config" / "routing.yaml"
        file.write_text(split)
        await until(lambda: whole_lines(tmp_path / "output.log"))
        warnings = [warning["message"] for warning in (await routing.run())["reload"]["warnings"]]
        assert [text.startswith("PROVIDER_KEY is not set") for text in warnings] == [True]
        await are(1)
        (tmp_path / ".env").write_text("PROVIDER_KEY=provider-key\n")
        await are(1, 0)
        file.write_text(split.replace("remote_deployment:", f"{entry}remote_deployment:"))
        await are(0.5, 0, 0.5)
        assert (await health.run())["status"] == "ok"

        file.write_text(split.replace("local_fraction: 1.0", "local_fraction: 0.0"))
        await are(0, 1)
        said = await run(sys.executable, "-c", snippet.replace(SERVED, url), cwd=tmp_path)
        assert said.startswith("I am provider.")
        process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
    [request] = [record for record in whole_lines(tmp_path / "output.log") if record["event"] == "request"]
    assert [attempt["group"] for attempt in request["attempts"]] == ["remote"]
