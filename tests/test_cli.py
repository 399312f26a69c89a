"""The command line: its flags and variables, what it prints, and its exit codes."""

import argparse
import asyncio
import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway import __version__
from gateway.cli import _parser, count, main, port, seconds, size, transport
from gateway.config.schema import schema
from tests.fakes.client import RawClient, get, post
from tests.running import START_PATIENCE, Config, Process, hold, split, until

LOCAL, REMOTE = "http://gpu-1:8000", "https://api.example.com/v1"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GATEWAY_") or name in {"PORT", "MODELS_CONFIG", "ROUTING_CONFIG", "CLOUD_URL"}:
            monkeypatch.delenv(name)


@pytest.fixture
def gateway(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; give its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


Gateway = Callable[..., tuple[int, str, str]]


def good(config: Config) -> None:
    config.models(chat={"gpu-1": LOCAL, "example": {"kind": "openai", "base_url": REMOTE}})
    config.routing(
        routing_parameter={"local_fraction": 0.6},
        local_deployment=split([LOCAL], "chat"),
        remote_deployment=split([REMOTE, "${CLOUD_URL}"], "chat"),
    )


def parsed(*arguments: str, **environ: str) -> dict[str, object]:
    found = vars(_parser(environ).parse_args(arguments))
    return {name: value for name, value in found.items() if name != "run"}


def test_flags_have_defaults() -> None:
    config: dict[str, object] = {"config_dir": Path("config"), "env_file": None}
    listen: dict[str, object] = {"host": "127.0.0.1", "port": 8080, "max_body": 32 << 20, "drain_timeout": 30.0}
    listen |= {"max_connections": None}
    assert parsed("serve") == config | listen | {"transport": "direct", "cors_origins": None, "keep_alive": 75.0}
    assert parsed("check") == config | {"url": None, "diff": False, "json": False, "schema": None}
    assert parsed("demo") == listen | {"dir": None, "chaos": False}
    assert parsed("demo", "--chaos")["chaos"] is True


@pytest.mark.parametrize(("wanted", "imported"), [("a .env", "dotenv"), ("a ledger", "sqlite3")])
def test_what_a_configuration_does_not_need_is_not_imported(config: Config, wanted: str, imported: str) -> None:
    good(config)
    if wanted == "a .env":
        (config.path.parent / ".env").write_text("CLOUD_URL=http://cloud\n", encoding="utf-8")
    else:
        config.routing(ledger={"url": "sqlite:///ledger.db"})
    program = (
        "import sys; from gateway.cli import main; main(); "
        "print(*{'dotenv', 'opentelemetry', 'psycopg', 'sqlite3'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", program, "check", "--config-dir", str(config.path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own
    assert told.stdout.splitlines()[-1] == imported


def test_the_tables_of_file_types_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mime.types").write_text("test/canary canary\n", encoding="utf-8")
    program = (
        "import mimetypes, sys; mimetypes.knownfiles[:] = [sys.argv.pop()]; from gateway.__main__ import main; main(); "
        "print(mimetypes.guess_type('a.canary')[0], mimetypes.guess_type('a.html')[0])"
    )
    command = [sys.executable, "-c", program, "check", "--schema", "models", str(tmp_path / "mime.types")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own
    assert told.stdout.splitlines()[-1] == "None text/html"


def test_no_runtime_of_another_language_is_loaded() -> None:
    program = (
        "import sys; from gateway.__main__ import main; main(); import gateway.server; "
        "print([name for name in ('frozenlist', 'frozenlist._frozenlist') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "check", "--schema", "models"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own
    assert told.stdout.splitlines()[-1] == "['frozenlist']"


@pytest.mark.parametrize("command", ["serve", "check", "demo"])
@pytest.mark.parametrize(
    ("flag", "variable", "text", "value"),
    [
        ("--config-dir", "GATEWAY_CONFIG_DIR", "/etc/gateway", Path("/etc/gateway")),
        ("--env-file", "GATEWAY_ENV_FILE", "/run/keys", Path("/run/keys")),
        ("--host", "GATEWAY_HOST", "0.0.0.0", "0.0.0.0"),
        ("--port", "GATEWAY_PORT", "9000", 9000),
        ("--port", "PORT", "9000", 9000),
        ("--max-body", "GATEWAY_MAX_BODY", "64MiB", 64 << 20),
        ("--max-connections", "GATEWAY_MAX_CONNECTIONS", "500", 500),
        ("--keep-alive", "GATEWAY_KEEP_ALIVE", "620", 620.0),
        ("--drain-timeout", "GATEWAY_DRAIN_TIMEOUT", "1.5", 1.5),
        ("--cors-origins", "GATEWAY_CORS_ORIGINS", "https://a,http://b:1", frozenset({"https://a", "http://b:1"})),
        ("--transport", "GATEWAY_TRANSPORT", "session", "session"),
        ("--url", "GATEWAY_URL", "https://gateway:1", "https://gateway:1"),
    ],
)
def test_each_flag_has_its_variable(command: str, flag: str, variable: str, text: str, value: object) -> None:
    name = flag[2:].replace("-", "_")
    if name not in parsed(command):
        with pytest.raises(SystemExit) as stop:
            parsed(command, flag, text)
        assert stop.value.code == 2
        return
    default = parsed(command)[name]
    assert parsed(command, flag, text)[name] == value
    assert parsed(command, **{variable: text})[name] == value
    assert parsed(command, flag, text, **{variable: "1"})[name] == value
    assert parsed(command, **{variable: ""})[name] == default


def test_the_gateways_own_port_variable_wins() -> None:
    assert parsed("serve", PORT="1000", GATEWAY_PORT="2000")["port"] == 2000


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("33554432", 1 << 25), ("8k", 8192), ("32MiB", 1 << 25), (" 1 gb ", 1 << 30)]
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        *[(size, text, "a size such as 32MiB") for text in ("", "0", "-1", "1.5M", "lots", "1T")],
        *[(port, text, "a port from 0 to 65535") for text in ("", "-1", "65536", "80.0", "http", "\u0663")],
        *[(count, text, "a number of at least 1") for text in ("", "0", "-1", "1.5", "many")],
        *[(transport, text, "one of: direct, session") for text in ("", "aiohttp")],
        *[(seconds, text, "a number of seconds, at least 0") for text in ("", "-1", "nan", "inf", "soon")],
    ],
)
def test_bad_values_name_what_was_found_and_expected(read: Callable[[str], object], text: str, expected: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        read(text)
    assert str(error.value) == f"found {text!r}, expected {expected}"


@pytest.mark.parametrize(
    ("flag", "variable", "message"),
    [
        ("--port", "GATEWAY_PORT", "found 'x', expected a port from 0 to 65535"),
        ("--port", "PORT", "found 'x', expected a port from 0 to 65535"),
        ("--max-body", "GATEWAY_MAX_BODY", "found 'x', expected a size such as 32MiB"),
        ("--drain-timeout", "GATEWAY_DRAIN_TIMEOUT", "found 'x', expected a number of seconds, at least 0"),
        (
            "--cors-origins",
            "GATEWAY_CORS_ORIGINS",
            "found 'x', expected an origin such as https://chat.example.com, or *",
        ),
    ],
)
def test_bad_usage_is_told_with_its_place(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, flag: str, variable: str, message: str
) -> None:
    code, out, err = gateway("serve", flag, "x")
    assert (code, out, err.splitlines()[-1]) == (2, "", f"gateway serve: error: argument {flag}: {message}")
    monkeypatch.setenv(variable, "x")
    code, out, err = gateway("serve")
    assert (code, out, err.splitlines()[-1]) == (2, "", f"gateway serve: error: argument {flag}: {variable}: {message}")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["check", "--schema", "weather"], ["serve", "here"]])
def test_wrong_usage_exits_with_2(gateway: Gateway, arguments: list[str]) -> None:
    code, out, err = gateway(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: gateway")


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["demo"]])
def test_help_is_given(gateway: Gateway, command: list[str]) -> None:
    code, out, _ = gateway(*command, "--help")
    assert code == 0
    assert out.startswith("usage: gateway")
    if command == ["serve"]:
        assert "[GATEWAY_PORT, PORT; 8080]" in " ".join(out.split())


def test_the_version_is_told(gateway: Gateway) -> None:
    assert gateway("--version") == (0, f"gateway {__version__}\n", "")


def test_the_module_may_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("gateway.__main__")
    assert capsys.readouterr() == ("", "")


def test_check_prints_warnings_and_the_plan(gateway: Gateway, config: Config) -> None:
    good(config)
    code, out, err = gateway("check", "--config-dir", str(config.path))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"warning: {config.path / 'routing.yaml'}:")
    assert "endpoint: CLOUD_URL is not set" in lines[0]
    assert lines[1:] == [
        "",
        "chat",
        "    60.00%  gpu-1    local   http://gpu-1:8000        vllm",
        "    40.00%  example  remote  https://api.example.com  openai",
        "  inactive  -        remote  waits for CLOUD_URL      -",
        "",
        "configuration ok (strategy: fixed)",
    ]


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("GATEWAY_PORT=0", "http://127.0.0.1:0"),
        ("GATEWAY_HOST=::zz", "http://[::zz]:8080"),
        ("GATEWAY_HOST=fe80::1%eth0", None),
    ],
)
def test_only_a_comparison_asks_where_the_gateway_is(
    gateway: Gateway, config: Config, monkeypatch: pytest.MonkeyPatch, variable: str, url: str | None
) -> None:
    good(config)
    monkeypatch.setenv(*variable.split("="))
    arguments = ("check", "--config-dir", str(config.path))
    assert gateway(*arguments)[0] == 0
    assert gateway("check", "--help")[0] == 0
    if url:
        told = f"gateway: cannot ask {url}, which the environment gives: say where the gateway is with --url\n"
        assert gateway(*arguments, "--diff") == (1, "", told)


def test_check_names_fallbacks_and_models_that_wait(gateway: Gateway, config: Config) -> None:
    config.models(chat={"gpu-1": LOCAL, "spare": {"base_url": REMOTE, "weight": 0}}, later={"cloud": "${CLOUD_URL}"})
    code, out, _ = gateway("check", "--config-dir", str(config.path))
    assert code == 0
    assert [line.split() for line in out.splitlines() if "gpu-1" in line or "spare" in line] == [
        ["100.00%", "gpu-1", "unlisted", LOCAL, "vllm"],
        ["fallback", "spare", "unlisted", "https://api.example.com", "vllm"],
    ]
    assert out.splitlines()[-3].split() == ["inactive", "-", "unlisted", "waits", "for", "CLOUD_URL", "-"]


def test_check_prints_json(gateway: Gateway, config: Config) -> None:
    good(config)
    code, out, err = gateway("check", "--json", "--config-dir", str(config.path))
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["faults"], told["strategy"], len(told["warnings"])) == ([], "fixed", 1)
    assert told["models"] == [
        {
            "id": "chat",
            "deployments": [
                {"name": "gpu-1", "group": "local", "endpoint": LOCAL, "kind": "vllm", "share": 0.6},
                {
                    "name": "example",
                    "group": "remote",
                    "endpoint": "https://api.example.com",
                    "kind": "openai",
                    "share": 0.4,
                },
            ],
            "inactive": ["CLOUD_URL"],
        }
    ]


@pytest.fixture
def faulty(config: Config) -> list[tuple[str, int, int, str]]:
    """Write two files with three faults and a warning; give the faults' places and paths."""
    config.save("models.yaml", "models:\n- id: chat\n  base_url: http://gpu-1:8000\n  alias: [c]\n  provider: vlm\n")
    config.save("routing.yaml", "local_deployment:\n- endpoint: http://gpu-1:8000\n  models: [chta]\n")
    (config.path.parent / ".env").write_text("no variable\n")
    models, routing = str(config.path / "models.yaml"), str(config.path / "routing.yaml")
    return [
        (models, 4, 3, "models[0].alias"),
        (models, 5, 13, "models[0].provider"),
        (routing, 3, 12, "local_deployment[0].models[0]"),
    ]


def test_check_lists_every_fault_with_its_place(
    gateway: Gateway, config: Config, faulty: list[tuple[str, int, int, str]]
) -> None:
    code, out, err = gateway("check", "--config-dir", str(config.path))
    assert (code, out) == (1, "")
    warning, *faults, count = err.splitlines()
    assert warning.startswith(f"warning: {config.path.parent / '.env'}:1:1: ")
    assert [line.startswith("{}:{}:{}: {}: ".format(*fault)) for line, fault in zip(faults, faulty, strict=True)] == [
        True,
        True,
        True,
    ]
    assert faults[0].endswith("unknown key 'alias', did you mean 'aliases'?")
    assert count == "3 faults"


def test_check_lists_faults_as_json(gateway: Gateway, config: Config, faulty: list[tuple[str, int, int, str]]) -> None:
    code, out, err = gateway("check", "--json", "--config-dir", str(config.path))
    assert (code, err) == (1, "")
    told = json.loads(out)
    assert [(f["file"], f["line"], f["column"], f["path"]) for f in told["faults"]] == faulty
    assert [warning["line"] for warning in told["warnings"]] == [1]


def test_check_works_in_a_folder_that_was_removed(
    gateway: Gateway, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(config)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, out, _ = gateway("check", "--config-dir", str(config.path))
    assert (code, out.splitlines()[-1]) == (0, "configuration ok (strategy: fixed)")


def test_check_of_nothing_is_one_fault(gateway: Gateway, tmp_path: Path) -> None:
    code, out, err = gateway("check", "--config-dir", str(tmp_path))
    assert (code, out) == (1, "")
    assert err.splitlines()[0].startswith(f"{tmp_path / 'models.yaml'}: not found")
    assert err.splitlines()[1:] == ["1 fault"]


def test_check_of_a_file_that_cannot_be_read_is_a_fault(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").mkdir()
    code, _, err = gateway("check", "--config-dir", str(tmp_path))
    assert (code, err) == (1, f"{tmp_path / 'models.yaml'}: cannot be read: is a directory\n1 fault\n")


def test_check_reads_the_files_that_variables_name(
    gateway: Gateway, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(config)
    (config.path.parent / "vars").write_text("CLOUD_URL=https://cloud.example.com\n")
    monkeypatch.setenv("MODELS_CONFIG", str(config.path / "models.yaml"))
    monkeypatch.setenv("ROUTING_CONFIG", str(config.path / "routing.yaml"))
    monkeypatch.setenv("GATEWAY_ENV_FILE", str(config.path.parent / "vars"))
    code, out, _ = gateway("check", "--config-dir", "nowhere")
    assert code == 0
    assert "waits for" not in out
    assert "https://cloud.example.com" in out


def test_check_creates_no_log(gateway: Gateway, config: Config) -> None:
    """Root checks, another serves: the file used to be root's then."""
    good(config)
    config.routing(logging={"output": str(config.path.parent / "deep" / "output.log")})
    code, _, _ = gateway("check", "--config-dir", str(config.path))
    assert code == 0
    assert sorted(path.name for path in config.path.parent.iterdir()) == ["config"]


@pytest.mark.parametrize("output", ["stdout", "stderr", "/dev/null", "there.log"])
def test_check_accepts_a_log_that_can_be_written(
    gateway: Gateway, config: Config, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(config.path)
    (config.path / "there.log").touch()
    config.models(chat={"gpu-1": LOCAL})
    config.routing(logging={"output": output})
    assert gateway("check", "--config-dir", str(config.path))[0] == 0


def test_check_refuses_a_log_that_cannot_be_written(gateway: Gateway, config: Config) -> None:
    good(config)
    config.routing(logging={"output": str(config.path)})
    code, _, err = gateway("check", "--config-dir", str(config.path))
    assert code == 1
    assert f"logging.output: cannot log there: {config.path}: is a folder" in err
    config.routing(logging={"output": str(config.path / "models.yaml" / "output.log")})
    code, _, err = gateway("check", "--config-dir", str(config.path))
    assert code == 1
    assert "output.log: a part of its path is not a folder" in err


@pytest.mark.parametrize("file", ["models", "routing"])
def test_schemas_are_printed(gateway: Gateway, file: Any) -> None:
    code, out, err = gateway("check", "--schema", file)
    assert (code, err) == (0, "")
    assert json.loads(out) == schema(file)


@pytest.mark.usefixtures("watched")
def test_a_reader_that_leaves_ends_it_quietly(config: Config) -> None:
    good(config)
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", "gateway", "check", "--config-dir", str(config.path)],
        stdout=write,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        check=False,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.usefixtures("watched")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it stands for a full disk")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_ends_it_with_one_line(config: Config, unbuffered: str) -> None:
    good(config)
    command = [sys.executable, "-m", "gateway", "check", "--config-dir", str(config.path)]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(  # noqa: S603 - our own
            command, env=environ, stdout=full, stderr=subprocess.PIPE, check=False, text=True
        )
    assert (done.returncode, done.stderr) == (1, "gateway: cannot write: no space left on device\n")


@pytest.mark.usefixtures("watched")
def test_a_closed_stdout_is_no_fault(config: Config) -> None:
    good(config)
    command = f"exec {shlex.quote(sys.executable)} -m gateway check --config-dir {shlex.quote(str(config.path))} >&-"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)  # noqa: S603, S607 - our own
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.usefixtures("watched")
def test_a_closed_stdout_takes_no_log(config: Config) -> None:
    config.models(chat={"gpu-1": LOCAL})
    config.routing(logging={"output": "stdout"})
    command = f"exec {shlex.quote(sys.executable)} -m gateway check --config-dir {shlex.quote(str(config.path))} >&-"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)  # noqa: S603, S607 - our own
    assert (ended.returncode, b"cannot log there: stdout: bad file descriptor" in ended.stderr) == (1, True)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
async def test_it_stops_well_where_streams_were_closed_at_the_start(config: Config, closed: str) -> None:
    config.models(chat={"gpu-1": LOCAL})
    config.routing()
    serve = f"-m gateway serve --port 0 --config-dir {shlex.quote(str(config.path))}"
    process = await asyncio.create_subprocess_exec("sh", "-c", f"exec {shlex.quote(sys.executable)} {serve} {closed}")
    try:
        await until(lambda: config.records("gateway.started") or process.returncode is not None, START_PATIENCE)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_PATIENCE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it stands for a full disk")
async def test_it_serves_though_stderr_takes_nothing_and_says_it_nowhere_else(config: Config, stderr: str) -> None:
    config.models(chat={"gpu-1": LOCAL})
    config.routing(logging={"output": "stdout"})
    serve = f"-m gateway serve --port 0 --config-dir {shlex.quote(str(config.path))}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f"exec {shlex.quote(sys.executable)} {serve} {stderr}"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_PATIENCE):
            first = await process.stdout.readline()
            [url] = json.loads(first)["urls"]

            async def answers() -> bool:
                with suppress(ConnectionError):
                    async with RawClient(url) as client:
                        await client.send(get("/health"))
                        return (await client.read_answer()).status == 200
                return process.returncode is not None

            await until(answers, START_PATIENCE)
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            rest, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert [json.loads(line)["event"] for line in (first + rest).splitlines()] == ["gateway.started", "gateway.stopped"]
    assert process.returncode == 0


@pytest.mark.usefixtures("watched")
def test_an_interrupt_before_it_has_begun_is_no_traceback() -> None:
    program = """
import sys
from gateway.__main__ import main

class Interrupted:
    @staticmethod
    def find_spec(name, *_):
        if name == "gateway.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted)
sys.exit(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)  # noqa: S603 - our own
    assert (ended.returncode, ended.stderr) == (130, b"")


async def test_an_interrupt_is_no_traceback(config: Config) -> None:
    fifo = config.waiting_strategy()
    config.models(m={"box": "http://localhost:9"})
    config.routing(routing_strategy="waiting:Waiting")
    async with Process("check", "--config-dir", str(config.path), cwd=fifo.parent) as gateway:
        file = await hold(fifo)
        gateway.send_signal(signal.SIGINT)
        os.close(file)  # a signal just before the read would not end it
        assert await gateway.ended() == 130
    assert (gateway.stdout, gateway.stderr) == ("", "")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


async def test_a_taken_port_is_one_line(config: Config, taken: int) -> None:
    good(config)
    async with Process("serve", "--config-dir", str(config.path), "--port", str(taken)) as gateway:
        assert await gateway.ended() == 1
    assert gateway.stderr == f"gateway: cannot listen on 127.0.0.1:{taken}: address already in use\n"
    assert gateway.stdout == ""
    assert not config.log.exists()


@pytest.mark.usefixtures("watched")
async def test_serve_takes_everything_from_the_environment(config: Config) -> None:
    good(config)
    (config.path.parent / "vars").write_text("CLOUD_URL=https://cloud.example.com\n")
    environ = {
        "GATEWAY_CONFIG_DIR": str(config.path),
        "GATEWAY_ENV_FILE": str(config.path.parent / "vars"),
        "GATEWAY_HOST": "0.0.0.0",
        "PORT": "0",
        "GATEWAY_MAX_BODY": "1k",
        "GATEWAY_DRAIN_TIMEOUT": "1",
        "GATEWAY_CORS_ORIGINS": "https://page.example.com",
    }
    async with Process("serve", environ=environ) as gateway:
        url = await gateway.url()
        assert url.startswith("http://0.0.0.0:")
        page = f"{url.replace('0.0.0.0', '127.0.0.1')}/"
        assert gateway.stderr.splitlines() == [
            "warning: anyone who reaches this port can use the models: routing.yaml's `clients` limits that",
            f"gateway: serving on {url}, page: {page}, log: {config.log}",
        ]
        async with RawClient(url.replace("0.0.0.0", "127.0.0.1")) as client:
            origin = "https://page.example.com"
            await client.send(post("/v1/chat/completions", {"model": "x" * 1024}, [("origin", origin)]))
            answer = await client.read_answer()
            assert (answer.status, answer.json()["error"]["message"]) == (413, "the body is larger than 1024 bytes")
            assert answer.head.get("access-control-allow-origin") == origin
        gateway.process.terminate()
        assert await gateway.ended() == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_who_asks_in_the_same_environment_reaches_it(
    config: Config, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """`check --diff`, `stats`, and the image's HEALTHCHECK."""
    good(config)
    environ = {"GATEWAY_CONFIG_DIR": str(config.path), "GATEWAY_HOST": host}
    async with Process("serve", "--port", "0", environ=environ) as serving:
        match = await serving.said(r"(cannot listen)|serving on http\S+:(\d+)")
        if match[1] and ":" in host:
            pytest.skip("needs IPv6")
        environ["GATEWAY_PORT"] = match[2]
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        code, out, _ = await asyncio.to_thread(gateway, "check", "--diff")
        assert (code, "no changes to generation 1 at http://" in out) == (0, True)
        code, _, err = await asyncio.to_thread(gateway, "stats")
        assert (code, err.startswith("gateway: there is no ledger: ")) == (1, True)
        written = (Path(__file__).parents[1] / "Dockerfile").read_text().partition("HEALTHCHECK ")[2]
        python, *arguments = json.loads(written[written.index("[") : written.index('"]') + 2].replace("\\\n", ""))
        assert python == "python3"
        asked = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environ)
        assert await asked.wait() == 0


async def test_serve_prints_its_warnings(config: Config) -> None:
    good(config)
    async with Process(
        *("serve", "--config-dir", str(config.path), "--port", "0", "--max-connections", "9999999999")
    ) as gateway:
        await gateway.url()
        unset, *few, _ = gateway.stderr.splitlines()
        gateway.process.terminate()
        assert await gateway.ended() == 0
    assert unset.startswith(f"warning: {config.path / 'routing.yaml'}:")
    assert "endpoint: CLOUD_URL is not set" in unset
    told = "warning: 9999999999 connections may need 20000000126 open files, the limit is "
    assert [line.startswith(told) for line in few] == [True] * (sys.platform == "linux")  # elsewhere there may be none
