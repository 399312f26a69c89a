"""What a trace says about a request and its attempts: names and attributes of their spans.

They are those of OpenTelemetry's semantic conventions for HTTP servers (the request) and for GenAI clients (the
attempts), and some of our own (`gateway.*`). The name of a request's span does not contain the model, because clients
choose that. Only the attempt that answered has token counts, so that a sum over all spans is right.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from typing import Final
from urllib.parse import urlsplit

from gateway.execution.outcome import Attempt, Outcome
from gateway.routing.snapshot import Deployment

Value = str | int | float | bool
Attributes = dict[str, Value]

_LONGEST_NAME: Final = 256
_OPERATIONS: Final = {
    "chat/completions": "chat",
    "completions": "text_completion",
    "responses": "chat",
    "embeddings": "embeddings",
}
_PROVIDERS: Final = {"gemini": "gcp.gemini"}
"""Kinds that the conventions name differently."""
_PORTS: Final = {"http": 80, "https": 443}


def request_name(outcome: Outcome) -> str:
    """Return the name of a request's span."""
    return f"POST /v1/{outcome.operation}"


def attempt_name(outcome: Outcome, attempt: Attempt) -> str:
    """Return the name of an attempt's span."""
    return f"{_OPERATIONS[outcome.operation]} {attempt.model}"


def request_attributes(outcome: Outcome) -> Attributes:
    """Return the attributes of a request's span."""
    path = f"/v1/{outcome.operation}"
    told: dict[str, Value | None] = {
        "http.request.method": "POST",
        "http.route": path,
        "url.path": path,
        "url.scheme": "http",
        "http.response.status_code": outcome.status,
        "error.type": outcome.failure,
        "gen_ai.operation.name": _OPERATIONS[outcome.operation],
        "gen_ai.request.model": outcome.model[:_LONGEST_NAME] or None,
        "gen_ai.request.stream": outcome.stream or None,
        "gen_ai.response.model": outcome.served_model,
        "gen_ai.response.time_to_first_chunk": _seconds(outcome.first_content if outcome.stream else None),
        "gateway.request_id": outcome.request_id,
        "gateway.generation": outcome.generation or None,
        "gateway.attempts": len(outcome.attempts),
        "gateway.deployment": outcome.answered.deployment if outcome.answered else None,
        "gateway.fallback": outcome.fallback,
    }
    return {name: value for name, value in told.items() if value is not None}


def attempt_attributes(outcome: Outcome, attempt: Attempt, deployment: Deployment | None) -> Attributes:
    """Return the attributes of an attempt's span; `deployment` is None if its generation is no longer kept."""
    answered = attempt is outcome.answered
    usage = outcome.usage if answered else None
    content = outcome.first_content if answered and outcome.stream else None
    told: dict[str, Value | None] = {
        "gen_ai.operation.name": _OPERATIONS[outcome.operation],
        "gen_ai.request.model": deployment.served_model if deployment else attempt.model,
        "gen_ai.request.stream": outcome.stream or None,
        "gen_ai.response.model": deployment.served_model if answered and deployment else None,
        "gen_ai.response.time_to_first_chunk": _seconds(None if content is None else content - attempt.offset),
        "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens if usage else None,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens if usage else None,
        "http.response.status_code": attempt.status,
        "error.type": attempt.failure,
        "gateway.model": attempt.model,
        "gateway.deployment": attempt.deployment,
        "gateway.group": attempt.group,
        "gateway.rescue": attempt.rescue,
        **(_place(deployment) if deployment else {}),
    }
    return {name: value for name, value in told.items() if value is not None}


def _place(deployment: Deployment) -> Attributes:
    parts = urlsplit(deployment.endpoint.identity)
    return {
        "gen_ai.provider.name": _PROVIDERS.get(deployment.kind, deployment.kind),
        "server.address": parts.hostname or "",
        "server.port": parts.port or _PORTS[parts.scheme],
    }


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
