"""What is measured: how each peer is configured and started, under its name in the table."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from subprocess import run
from typing import Final

_PASSTHROUGH: Final = Path(__file__).with_name("passthrough.py")
_NGINX: Final = """\
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream upstream_ {{ server 127.0.0.1:{upstream}; keepalive 4096; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 100000000;
    client_max_body_size 64m;
    location / {{
      proxy_pass http://upstream_;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }}
  }}
}}
"""
_HAPROXY: Final = """\
global
  maxconn 8192
  nbthread 1
defaults
  mode http
  option http-no-delay
  timeout connect 2s
  timeout client 1h
  timeout server 1h
frontend front
  bind 127.0.0.1:{port} backlog 4096
  default_backend back
backend back
  http-reuse always
  server upstream 127.0.0.1:{upstream}
"""
_LITELLM: Final = """\
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{upstream}/v1", api_key: sk-bench}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""


@dataclass(frozen=True, slots=True)
class Start:
    """How a peer is started in a folder of its own: the files that it needs there, and the command."""

    files: Mapping[str, str]
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with. `start` takes its port, the upstream's, and its folder; `says` returns its version."""

    name: str
    is_here: Callable[[], bool]
    start: Callable[[int, int, Path], Start]
    says: Callable[[], str]


def gateway(models: object, routing: Mapping[str, object], flags: tuple[str, ...], port: int, folder: Path) -> Start:
    """Return how to start the gateway, as its users do; the files are JSON, which is YAML."""
    files = {"config/models.yaml": json.dumps({"models": models}), "config/routing.yaml": json.dumps(routing)}
    serve = ("serve", "--config-dir", str(folder / "config"), "--port", str(port), *flags)
    return Start(files, (sys.executable, "-m", "gateway", *serve))


def _passthrough(port: int, upstream: int, _: Path) -> Start:
    return Start({}, (sys.executable, str(_PASSTHROUGH), str(port), str(upstream)))


def _nginx(port: int, upstream: int, folder: Path) -> Start:
    files = {"nginx.conf": _NGINX.format(port=port, upstream=upstream)}
    return Start(files, (_found("nginx"), "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"))


def _haproxy(port: int, upstream: int, _: Path) -> Start:
    return Start({"h.cfg": _HAPROXY.format(port=port, upstream=upstream)}, (_found("haproxy"), "-f", "h.cfg"))


def _litellm(port: int, upstream: int, _: Path) -> Start:
    command = (_found("litellm"), "--config", "c.yaml", "--host", "127.0.0.1", "--port", str(port))
    return Start({"c.yaml": _LITELLM.format(upstream=upstream)}, (*command, "--num_workers", "1"))


def _sglang(port: int, upstream: int, _: Path) -> Start:
    """Start SGLang's router, which is compiled; by default it pins conversations to boxes, unlike its peers."""
    to = ("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "random")
    return Start({}, (_found("smg"), "launch", *to, "--host", "127.0.0.1", "--port", str(port)))


def _found(command: str) -> str:
    """Find a command; Debian's nginx and haproxy are in /usr/sbin, which may not be on PATH."""
    return which(command) or f"/usr/sbin/{command}"


def _first_line(*command: str) -> Callable[[], str]:
    def say() -> str:
        answer = run([_found(command[0]), *command[1:]], capture_output=True, text=True, check=False)  # noqa: S603 - ours
        return (answer.stdout or answer.stderr).strip().partition("\n")[0]

    return say


def package(name: str) -> str:
    """Return a Python package's name and version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} from a checkout"


PEERS: Final = (
    Peer("bare aiohttp", lambda: True, _passthrough, lambda: package("aiohttp")),
    Peer("nginx", lambda: Path(_found("nginx")).exists(), _nginx, _first_line("nginx", "-v")),
    Peer("haproxy", lambda: Path(_found("haproxy")).exists(), _haproxy, _first_line("haproxy", "-v")),
    Peer("sglang-router", lambda: which("smg") is not None, _sglang, _first_line("smg", "--version")),
    Peer("litellm", lambda: which("litellm") is not None, _litellm, _first_line("litellm", "--version")),
)
