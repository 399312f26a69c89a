"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

https://platform.openai.com/docs/guides/error-codes. No message names a URL or a key.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web

from gateway.config.faults import nearest
from gateway.execution.record import Unanswered

_TYPES: Final = {
    500: "internal_error",
    502: "upstream_error",
    503: "service_unavailable_error",
    504: "upstream_error",
    508: "upstream_error",
}
_TELLING: Final = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
"""Header fields of a refusal, by its status (RFC 9110 11.6.1, 15.6.4)."""
_SHOWN: Final = 100
_COMPARED: Final = 200
_ALIKE: Final = 3


@dataclass(eq=False)
class RequestError(Exception):
    """A request that is answered with an error without asking any upstream. Not frozen: Python sets its traceback."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Build an error response; `code` is for programs, `param` names the offending field."""
    kind = _TYPES.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    body = msgspec.json.encode({"error": error})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def refusal(error: RequestError) -> web.Response:
    """Build the response to a request that is refused."""
    headers = _TELLING.get(error.status)
    return error_response(error.status, error.message, code=error.code, param=error.param, headers=headers)


def unknown_model(model: str, known: Iterable[str]) -> RequestError:
    """Return the error for a model that is not served, with the name that may have been meant."""
    shown = model if len(model) <= _SHOWN else model[:_SHOWN] + "..."
    message = f"the model {shown!r} is not served here{nearest(model[:_SHOWN], _candidates(model, tuple(known)))}"
    return RequestError(404, message, code="model_not_found", param="model")


def _candidates(model: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the names to compare with: of many, those that begin alike, as a comparison costs the loop 30 us."""
    if len(known) <= _COMPARED:
        return known
    beginning = model[:_ALIKE].casefold()
    return tuple(name for name in known if name.casefold().startswith(beginning))[:_COMPARED]


def unanswered_response(unanswered: Unanswered, model: str) -> web.Response:
    """Build the response when no deployment answered; an upstream's own 4xx is passed on unchanged."""
    own = unanswered.refusal
    if own is not None:
        response = web.Response(status=own.status, body=own.body)
        response.headers.extend(own.headers)
        response.headers["x-gateway-deployment"] = own.deployment
        response.headers["x-gateway-attempts"] = str(unanswered.tried)
        return response
    headers = {"x-gateway-attempts": str(unanswered.tried)}
    if unanswered.local_fault:
        message, code = "the gateway is out of connections, try again shortly", "gateway_exhausted"
    elif not unanswered.tried:
        message, code = f"the model {model!r} has no active deployment", "no_deployment"
    else:
        plural = "" if unanswered.tried == 1 else "s"
        message = f"no deployment of {model!r} answered, {unanswered.tried} attempt{plural} made"
        if unanswered.said:
            message += f"; {'one' if plural else 'it'} said: {unanswered.said}"
        code = "all_deployments_failed"
    if unanswered.status == 503:  # noqa: PLR2004 - RFC 9110 15.6.4
        headers["Retry-After"] = str(unanswered.retry_after)
    return error_response(unanswered.status, message, code=code, headers=headers)
