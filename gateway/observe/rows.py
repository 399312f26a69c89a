"""The rows of the page's state other than models: endpoints, requests, readings of the configuration. JSON-ready."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.execution.outcome import Attempt, Outcome

_LINES: Final = 40


def endpoint_row(name: str, row: Iterable[object]) -> dict[str, object]:
    """Describe an endpoint: its state, since when and why, its attempts under way, its number of deployments."""
    return {"id": name, **dict(zip(("state", "since", "reason", "in_flight", "deployments"), row, strict=False))}


def request_row(number: int, at: float, outcome: Outcome) -> dict[str, object]:
    """Describe a request that ended at `at`, in seconds since the epoch."""
    usage, answered = outcome.usage, outcome.answered
    return {
        "n": number,
        "at": round(at, 3),
        "id": outcome.request_id,
        "operation": outcome.operation,
        "model": outcome.model,
        "model_id": outcome.model_id,
        "served_model": outcome.served_model,
        "deployment": answered.deployment if answered else None,
        "stream": outcome.stream,
        "status": outcome.status,
        "failure": outcome.failure,
        "error": outcome.is_error,
        "fallback": outcome.fallback,
        "rescue": outcome.rescue,
        "generation": outcome.generation,
        "first_content": outcome.first_content,
        "duration": outcome.duration,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "attempts": [_attempt(attempt) for attempt in outcome.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "model": attempt.model,
        "deployment": attempt.deployment,
        "group": attempt.group,
        "offset": attempt.offset,
        "ms": attempt.milliseconds,
        "status": attempt.status,
        "failure": attempt.failure,
        "detail": attempt.detail,
        "rescue": attempt.rescue,
    }


def shortened(reload: Mapping[str, object]) -> dict[str, object]:
    """Shorten what a large reload reports: keep `_LINES` lines of each kind, and say how many more there are."""
    history: Any = reload.get("history", ())
    return {**reload, **_cut(reload, "faults", "warnings"), "history": [_cut_entry(entry) for entry in history]}


def _cut_entry(entry: Mapping[str, Any]) -> dict[str, object]:
    changes = entry.get("changes") or {}
    told = {"hash": None, "faults": [], **entry, "changes": {**changes, **_cut(changes, *changes)}}
    return told | _cut(entry, "faults")


def _cut(holder: Mapping[str, Any], *names: str) -> dict[str, object]:
    cut: dict[str, object] = {}
    for name in names:
        lines = holder.get(name)
        if isinstance(lines, list | tuple) and len(lines) > _LINES:
            cut[name], cut[f"{name}_more"] = lines[:_LINES], len(lines) - _LINES
    return cut
