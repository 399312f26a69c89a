"""Reads what is told as Prometheus would: by prometheus-client's parsers, which are strict."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.execution.outcome import Attempt, Outcome
from gateway.observe.metrics import families
from gateway.observe.metrics.families import Family
from gateway.observe.metrics.observer import Metrics
from gateway.observe.metrics.text import Told, slices

FAMILIES = tuple(each for each in vars(families).values() if isinstance(each, Family))
Samples = dict[str, float]
"""Values by `name{label=value,...}`, the labels in the order of their names."""


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str, **labels: str) -> str:
    """Name a sample."""
    return f"{name}{{{','.join(f'{label}={labels[label]}' for label in sorted(labels))}}}"


def of(deployment: str, name: str, group: str = "local", model: str = "m", **labels: str) -> str:
    """Name a deployment's sample."""
    return key(f"gateway_{name}", model=model, deployment=deployment, group=group, **labels)


def samples(text: str, *, openmetrics: bool = False) -> Samples:
    """Parse a page."""
    parse: Callable[[str], Iterable[Any]] = (
        openmetrics_parser.text_string_to_metric_families if openmetrics else text_string_to_metric_families
    )
    found: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            name = key(sample.name, **sample.labels)
            assert name not in found
            found[name] = sample.value
    return found


def page(told: Iterable[Told], *, openmetrics: bool = False) -> str:
    """Write a page, without what the registry adds."""
    end = b"# EOF\n" if openmetrics else b""
    return b"".join(slices(told, end, openmetrics=openmetrics)).decode()


def read(metrics: Metrics, prefix: str = "") -> Samples:
    """Give what the observer tells and is not zero, of the metrics whose names begin like this."""
    found = samples(page(metrics.told()))
    return {name: value for name, value in found.items() if value and name.startswith(prefix)}


def tried(
    deployment: str = "a",
    failure: str | None = None,
    group: str = "local",
    *,
    model: str = "m",
    status: int | None = None,
    rescue: str | None = None,
) -> Attempt:
    """Make an attempt on a deployment of the model `m`."""
    return Attempt(model, deployment, group, 1.0, status, failure, rescue=rescue)


def outcome(*attempts: Attempt, **more: Any) -> Outcome:
    """Make the outcome of a request for the model `m`; with attempts, it was answered by the last one."""
    fields = {
        "request_id": "r",
        "operation": "chat/completions",
        "model": "m",
        "model_id": "m",
        "served_model": attempts[-1].model if attempts else None,
        "generation": 1,
        "stream": False,
        "status": 200,
        "attempts": attempts,
        "fallback": False,
        "duration": 2000.0,
    }
    return Outcome(**fields | more)
