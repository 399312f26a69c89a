"""JSON Schemas of both files (draft 2020-12), for completion and error marking in editors.

They are derived from the documents, and differ where a file may be written differently from what it becomes: a number,
a flag or a choice as `${VARIABLE}`, health_check as a bare number, and a list or mapping with nothing below it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from gateway.config.documents import Document, ModelsDocument, RoutingDocument

_Schema = dict[str, Any]

_DOCUMENTS: Mapping[str, type[Document]] = {"models": ModelsDocument, "routing": RoutingDocument}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE: _Schema = {"type": "string", "pattern": r"\$\{"}
_NULL: _Schema = {"type": "null"}
_KEPT_OUTSIDE = ("description", "default")


def schema(which: Literal["models", "routing"]) -> dict[str, object]:
    """Return the JSON Schema of models.yaml or routing.yaml."""
    made = _adapted(_DOCUMENTS[which].model_json_schema())
    for part in (made, *made["$defs"].values()):
        _let_be_empty(part)
    if which == "routing":
        interval = made["$defs"]["HealthCheck"]["properties"]["interval"]
        made["properties"]["health_check"]["anyOf"][1:1] = interval["anyOf"]
    return {"$schema": _DIALECT, **made}


def _adapted(node: Any) -> Any:  # noqa: ANN401 - a JSON Schema is any JSON
    """Drop titles and null defaults; allow a variable where only a number, a flag or a choice would fit."""
    if isinstance(node, list):
        return [part for item in node for part in _flattened(_adapted(item))]
    if not isinstance(node, dict):
        return node
    kept = {key: _adapted(item) for key, item in node.items() if key != "title" and (key, item) != ("default", None)}
    if "enum" in kept or kept.get("type") in {"number", "integer", "boolean"}:
        return _choice(kept, _VARIABLE)
    return kept


def _flattened(node: Any) -> list[Any]:  # noqa: ANN401 - a JSON Schema is any JSON
    return node["anyOf"] if isinstance(node, dict) and set(node) == {"anyOf"} else [node]


def _let_be_empty(document: _Schema) -> None:
    for name, field in document["properties"].items():
        is_collection = field.get("type") in {"array", "object"} or "$ref" in field
        if is_collection and name not in document.get("required", ()):
            document["properties"][name] = _choice(field, _NULL)


def _choice(node: _Schema, other: _Schema) -> _Schema:
    outside = {key: node[key] for key in _KEPT_OUTSIDE if key in node}
    inside = {key: item for key, item in node.items() if key not in outside}
    return {**outside, "anyOf": [inside, other]}
