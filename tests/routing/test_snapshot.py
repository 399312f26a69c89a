from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from fractions import Fraction
from types import MappingProxyType

import pytest
from msgspec import Struct
from pydantic import SecretStr

from gateway.routing.snapshot import Snapshot
from tests.routing.planning import BOXES, DEAD, SPLIT, deployments, make, probe, serve, snapshot

FULL = (
    BOXES
    + """\
    context_length: 8192
    input_modalities: [text, image]
    pricing: {prompt: 1.0e-6, completion: "0.000002"}
  - {id: waits, base_url: "${NOWHERE}"}
"""
)
PARAMETERS = "routing_parameter: {tiers: {all: {names: [a, b, cloud], share: 1}}, token: t-canary}"
OWN = SPLIT.replace(
    "routing_parameter: {local_fraction: 0.6}", f"routing_strategy: tests.routing.guests:Tiers\n{PARAMETERS}"
)
LEAVES = (str, int, float, Fraction, SecretStr, type(None))


def names_in(value: object) -> tuple[str, ...] | None:
    """Name the fields of a record."""
    if isinstance(value, Struct):
        return value.__struct_fields__
    return tuple(field.name for field in fields(value)) if is_dataclass(value) else None


def parts(value: object) -> Iterator[object]:
    """Walk everything that a value holds."""
    yield value
    below: list[object] = []
    if (names := names_in(value)) is not None:
        below = [getattr(value, name) for name in names]
    elif isinstance(value, MappingProxyType):
        below = [*value.keys(), *value.values()]
    elif isinstance(value, tuple | frozenset):
        below = list(value)
    for part in below:
        yield from parts(part)


def current() -> Snapshot:
    manager = serve(FULL, OWN)
    probe(manager, a=DEAD)
    return snapshot(manager)


def test_a_snapshot_is_frozen_all_the_way_down() -> None:
    count = 0
    for part in parts(current()):
        count += 1
        if (names := names_in(part)) is None:
            assert type(part) in {*LEAVES, bool, tuple, frozenset, MappingProxyType}
            continue
        for name in names:
            with pytest.raises(AttributeError):
                setattr(part, name, None)
        with pytest.raises((AttributeError, TypeError)):
            setattr(part, "more", 1)  # noqa: B010 - there is no such field, which is the point
    assert count > 100


def test_no_key_is_in_any_text() -> None:
    whole = current()
    plan = make(FULL, OWN)
    shown = [*parts(whole), plan, *parts(plan.settings), *plan.configured, whole.deployments, whole.endpoints]
    text = "\n".join(f"{each!r} {each!s}" for each in shown if not isinstance(each, str | MappingProxyType))
    assert "canary" not in text
    assert "cloud" in text
    assert deployments(plan)["cloud"].headers == {"Authorization": "Bearer canary-cloud"}


def test_reprs_are_good_enough_to_assert_on() -> None:
    whole = current()
    routes = "<llama smooth b=0.5, cloud=0.5, a=0>, <waits smooth nothing>"
    assert repr(whole) == f"<Snapshot 1.1 down=['http://a:8000'] {routes}>"
    assert repr(snapshot(serve(BOXES, SPLIT))) == "<Snapshot 1.0 <llama random cloud=0.4, a=0.3, b=0.3>>"
    assert repr(whole.deployments[0]) == "<b local 1 of 'llama' at http://b:8000>"
    assert repr(whole.deployments[0].endpoint) == "Endpoint(identity='http://b:8000')"


def test_a_deployment_is_known_by_model_and_name() -> None:
    first, second = deployments(make(BOXES))["a"], deployments(make(BOXES, SPLIT))["a"]
    assert first.identity == second.identity == ("llama", "a")
    assert hash(first) == hash(second)
    assert first != second
    assert first == deployments(make(BOXES))["a"]


def test_a_snapshot_lists_its_deployments_and_endpoints() -> None:
    whole = current()
    assert [deployment.name for deployment in whole.deployments] == ["b", "cloud", "a"]
    assert sorted(whole.endpoints) == ["http://a:8000", "http://b:8000", "https://cloud.example"]
    assert whole.endpoints["http://a:8000"].health_url == "http://a:8000/health"


def test_models_tell_what_models_yaml_says_of_them() -> None:
    [llama, waits] = current().models
    assert (llama.id, llama.aliases) == ("llama", ("l3",))
    assert llama.metadata == {
        "context_length": 8192,
        "input_modalities": ("text", "image"),
        "pricing": {"prompt": 1e-6, "completion": "0.000002"},
    }
    assert waits.metadata == {}


def test_settings_are_those_of_routing_yaml() -> None:
    routing = """\
routing_strategy: round_robin
timeout: 3
health_check: {interval: 7, unhealthy_after: 2, healthy_after: 4}
logging: {output: x.log, level: debug}
"""
    settings = make(BOXES, routing).settings
    assert (settings.strategy, settings.probe_timeout, settings.health_interval) == ("round_robin", 3, 7)
    assert (settings.unhealthy_after, settings.healthy_after) == (2, 4)
    assert (settings.log_output, settings.log_level, settings.split) == ("x.log", "debug", True)
    bare = make(BOXES).settings
    assert (bare.strategy, bare.probe_timeout, bare.health_interval, bare.split) == ("fixed", 2, 0, False)


def test_parameters_are_shown_without_secrets() -> None:
    parameters = "{token: t-canary, list: ['${T}', '${N}', {secret: canary, plain: 1}], max_tokens: 5}"
    routing = f"routing_strategy: tests.routing.guests:Open\nrouting_parameter: {parameters}"
    assert make(BOXES, routing, T="t-canary", N="0.5").settings.parameters == {
        "token": "***",
        "list": ("${T}", 0.5, {"secret": "***", "plain": 1}),
        "max_tokens": 5,
    }
