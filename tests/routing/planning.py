"""How the routing tests come to plans and snapshots: from the text of two files, as the gateway does."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest

from gateway.config.faults import ConfigError
from gateway.config.load import Loaded, parse
from gateway.config.sources import ConfigFiles, Sources
from gateway.routing.health import ProbeResult
from gateway.routing.manager import HealthChange, RoutingManager
from gateway.routing.plan import Plan, plan
from gateway.routing.snapshot import Deployment, Route, Snapshot

FILES = ConfigFiles(Path("models.yaml"), Path("routing.yaml"), Path(".env"))
DEAD, ALIVE = ProbeResult("connect_refused"), ProbeResult()

BOXES = """\
models:
  - id: llama
    aliases: [l3]
    provider: vllm
    route:
      - {name: a, base_url: "http://a:8000"}
      - {name: b, base_url: "http://b:8000"}
      - {name: cloud, base_url: "https://cloud.example/v1", kind: llama, api_key: canary-cloud}
"""
ONE_BOX = """\
models:
  - id: llama
    base_url: http://box:8000
    provider_model_id: meta/llama
    provider: vllm
"""
SPLIT = """\
routing_parameter: {local_fraction: 0.6}
health_check: 5
local_deployment:
  - {endpoint: "http://a:8000", models: [llama]}
  - {endpoint: "http://b:8000", models: [llama]}
remote_deployment:
  - {endpoint: "https://cloud.example", models: [llama]}
"""


def claim(endpoint: str, models: str = "llama", more: str = "") -> str:
    return f'local_deployment: [{{endpoint: "{endpoint}", models: [{models}]{more}}}]\n'


def read(models: str = BOXES, routing: str | None = None, **environ: str) -> Loaded:
    return parse(Sources(models.encode(), None if routing is None else routing.encode()), FILES, environ)


def make(models: str = BOXES, routing: str | None = None, **environ: str) -> Plan:
    return plan(read(models, routing, **environ), "digest")


def serve(models: str = BOXES, routing: str | None = None, **environ: str) -> RoutingManager:
    manager = RoutingManager()
    manager.adopt(make(models, routing, **environ))
    return manager


def snapshot(manager: RoutingManager) -> Snapshot:
    assert manager.snapshot is not None
    return manager.snapshot


def faults(models: str = BOXES, routing: str | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make(models, routing, **environ)
    return [str(fault) for fault in caught.value.faults]


def notices(models: str = BOXES, routing: str | None = None, **environ: str) -> list[str]:
    return [str(notice) for notice in make(models, routing, **environ).notices]


def deployments(made: Plan, model: str = "llama") -> dict[str, Deployment]:
    return {deployment.name: deployment for deployment in made.configured[model]}


def weights(route: Route) -> dict[str, Fraction]:
    return {deployment.name: weight for deployment, weight in zip(route.chain, route.weights, strict=True)}


def chain(route: Route) -> list[str]:
    return [deployment.name for deployment in route.chain]


def shares(models: str = BOXES, routing: str | None = None, **environ: str) -> dict[str, Fraction]:
    return weights(make(models, routing, **environ).routes["llama"])


def keys(made: Plan, model: str = "llama") -> Mapping[str, str | None]:
    return {
        name: deployment.key.get_secret_value() if deployment.key else None
        for name, deployment in deployments(made, model).items()
    }


def probe(manager: RoutingManager, **results: ProbeResult) -> list[HealthChange | None]:
    """Tell what probes of a, b or cloud found."""
    endpoints = {"a": "http://a:8000", "b": "http://b:8000", "cloud": "https://cloud.example"}
    return [manager.probed(endpoints[name], result, now=100.0) for name, result in results.items()]
