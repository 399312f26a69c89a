import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from gateway.config.documents import ModelEntry, RouteEntry, RoutingDocument, SplitEntry
from gateway.config.fields import KINDS
from gateway.config.schema import schema
from gateway.config.strict_yaml import read_yaml
from tests.config.loading import load

SHIPPED = Path(__file__).parents[2] / "config"
WHICH: list[Literal["models", "routing"]] = ["models", "routing"]


def defs(which: Literal["models", "routing"]) -> Any:
    return schema(which)["$defs"]


def objects(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for item in node.values():
            yield from objects(item)
    if isinstance(node, list):
        for item in node:
            yield from objects(item)


def accepts(node: Any, value: object, root: Any) -> bool:
    """Say whether a value fits, for the part of JSON Schema that the gateway's schemas use."""
    if "$ref" in node:
        return accepts(root["$defs"][node["$ref"].removeprefix("#/$defs/")], value, root)
    if "anyOf" in node:
        return any(accepts(option, value, root) for option in node["anyOf"])
    match node.get("type"):
        case "object":
            return isinstance(value, dict) and _accepts_mapping(node, value, root)
        case "array":
            return (
                isinstance(value, list)
                and len(value) >= node.get("minItems", 0)
                and all(accepts(node["items"], item, root) for item in value)
            )
        case "string":
            return (
                isinstance(value, str)
                and len(value) >= node.get("minLength", 0)
                and re.search(node.get("pattern", ""), value) is not None
                and value in node.get("enum", [value])
            )
        case "number" | "integer":
            kinds = (int,) if node["type"] == "integer" else (int, float)
            return (
                isinstance(value, kinds)
                and not isinstance(value, bool)
                and node.get("minimum", value) <= value <= node.get("maximum", value)
                and value > node.get("exclusiveMinimum", -1)
            )
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case _:
            raise AssertionError(node)


def _accepts_mapping(node: Any, value: dict[str, object], root: Any) -> bool:
    fields, others = node.get("properties", {}), node["additionalProperties"]
    return set(node.get("required", ())) <= value.keys() and all(
        accepts(fields[key], item, root)
        if key in fields
        else others is True or (others is not False and accepts(others, item, root))
        for key, item in value.items()
    )


@pytest.mark.parametrize("which", WHICH)
def test_the_shipped_schema_is_what_the_documents_say(which: Literal["models", "routing"]) -> None:
    shipped = json.loads((SHIPPED / f"{which}.schema.json").read_text(encoding="utf-8"))
    assert shipped == schema(which), f"gateway check --schema {which} > config/{which}.schema.json"


@pytest.mark.parametrize("which", WHICH)
def test_the_shipped_file_points_at_its_schema_and_fits_it(which: Literal["models", "routing"]) -> None:
    text = (SHIPPED / f"{which}.yaml").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema=./{which}.schema.json"
    assert accepts(schema(which), yaml.safe_load(text), schema(which))


@pytest.mark.parametrize("which", WHICH)
def test_every_field_is_described_and_no_other_is_allowed(which: Literal["models", "routing"]) -> None:
    assert schema(which)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    described = [node for node in objects(schema(which)) if "properties" in node]
    assert len(described) == {"models": 4, "routing": 9}[which]
    for node in described:
        assert node["additionalProperties"] is False
        assert node["description"]
        assert all(field["description"] for field in node["properties"].values())
    assert '"title"' not in json.dumps(schema(which))


def test_all_fields_are_there() -> None:
    assert defs("models")["ModelEntry"]["properties"].keys() == ModelEntry.model_fields.keys()
    assert defs("models")["RouteEntry"]["properties"].keys() == RouteEntry.model_fields.keys()
    assert defs("routing")["SplitEntry"]["properties"].keys() == SplitEntry.model_fields.keys()
    assert schema("routing")["properties"].keys() == RoutingDocument.model_fields.keys()  # type: ignore[attr-defined] # JSON


MODEL = "models: [{id: a, %s}]"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("which", "text", "fits"),
    [
        ("models", MODEL % "context_length: 4096", True),
        ("models", MODEL % "context_length: '${N:-4096}'", True),
        ("models", MODEL % "context_length: '4096'", False),
        ("models", MODEL % "context_length: 0", False),
        ("models", MODEL % "supports_tools: true", True),
        ("models", MODEL % "supports_tools: '${T}'", True),
        ("models", MODEL % "supports_tools: 'yes'", False),
        ("models", MODEL % "provider: '${KIND}'", True),
        ("models", MODEL % "provider: vlm", False),
        ("models", MODEL % "aliases: ", True),
        ("models", MODEL % "route: ", True),
        ("models", MODEL % "route: []", False),
        ("models", MODEL % "route: [{base_url: ftp://x}]", False),
        ("models", MODEL % "route: [{base_url: 'http://x', weight: 0}]", True),
        ("models", MODEL % "pricing: {prompt: 1, completion: '2'}", True),
        ("models", MODEL % "pricing: {prompt: -1}", False),
        ("models", MODEL % "wieght: 1", False),
        ("models", MODEL % "timeouts: {idle: 5}", True),
        ("models", MODEL % "timeouts: {idle: -5}", False),
        ("models", MODEL % "fallbacks: ", True),
        ("models", MODEL % "fallbacks: b", False),
        ("models", "models: []", False),
        ("routing", "health_check: 30", True),
        ("routing", "health_check: '${H}'", True),
        ("routing", "health_check: {interval: 30}", True),
        ("routing", "health_check: ", True),
        ("routing", "health_check: -1", False),
        ("routing", "health_check: {every: 30}", False),
        ("routing", "timeout: 0", False),
        ("routing", "timeout: '${T}'", True),
        ("routing", "timeouts: {connect: 1, first_token: 0, idle: '${T}', total: }", True),
        ("routing", "timeouts: {connect: 0}", False),
        ("routing", "timeouts: 3", False),
        ("routing", "retries: {attempts: 3, ratio: 0.5, retry_after_max: 0}", True),
        ("routing", "retries: {ratio: 2}", False),
        ("routing", "breaker: {failures: '${T}', hold: 1}", True),
        ("routing", "breaker: ", True),
        ("routing", "breaker: {failures: 0}", False),
        ("routing", "logging: {level: info}", True),
        ("routing", "logging: {level: warn}", False),
        ("routing", "routing_parameter: {anything: [1]}", True),
        ("routing", "local_deployment: ", True),
        ("routing", "local_deployment: [{endpoint: 'http://x', models: [a], health_path: up}]", False),
        ("routing", "local_deployment: [{endpoint: 'http://x', models: []}]", False),
        ("routing", "local_deployment: [{endpoint: '${URL}', models: [a], weight: , api_key: }]", True),
    ],
)
def test_the_schema_and_the_gateway_agree(which: Literal["models", "routing"], text: str, *, fits: bool) -> None:
    environ = {"N": "4096", "T": "true" if "tools" in text else "3", "KIND": "vllm", "H": "30", "URL": "http://x"}
    tree, faults = read_yaml(text.encode(), "f")
    assert not faults
    assert accepts(schema(which), tree.data, schema(which)) is fits
    loaded = load(text, environ=environ) if which == "models" else load(MODEL % "", text, environ=environ)
    assert (not loaded.faults) is fits


def test_kinds_are_offered() -> None:
    kinds = defs("models")["RouteEntry"]["properties"]["kind"]["anyOf"][0]["enum"]
    assert tuple(kinds) == KINDS
