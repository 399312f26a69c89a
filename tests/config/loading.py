"""How the tests read configurations that stand in text."""

from collections.abc import Mapping
from pathlib import Path

from gateway.config.load import Loaded, parse
from gateway.config.sources import ConfigFiles, Sources

MODELS = """\
models:
  - id: llama
    base_url: http://box:8000
"""


def content(text: str | bytes | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


def load(
    models: str | bytes | None = MODELS,
    routing: str | bytes | None = None,
    *,
    env: str | bytes | None = None,
    environ: Mapping[str, str] | None = None,
    legacy: str | None = None,
    misnamed: frozenset[str] = frozenset(),
) -> Loaded:
    environ = environ or {}
    files = ConfigFiles.of(Path("config"), environ)
    sources = Sources(content(models), content(routing), content(env), legacy, misnamed)
    return parse(sources, files, environ)


def faults(
    models: str | bytes | None = MODELS,
    routing: str | bytes | None = None,
    *,
    env: str | bytes | None = None,
    environ: Mapping[str, str] | None = None,
    legacy: str | None = None,
    misnamed: frozenset[str] = frozenset(),
) -> list[str]:
    loaded = load(models, routing, env=env, environ=environ, legacy=legacy, misnamed=misnamed)
    return [str(fault) for fault in loaded.faults]


def models(fields: str) -> str:
    """Give a models.yaml whose one entry has further fields: `weight: 1` lines, unindented."""
    return MODELS + "".join(f"    {line}\n" for line in fields.splitlines())


def split(fields: str) -> str:
    """Give a routing.yaml with one local entry of these fields besides endpoint and models."""
    lines = "".join(f"    {line}\n" for line in fields.splitlines())
    return f"local_deployment:\n  - endpoint: http://box:8000\n    models: [llama]\n{lines}"
