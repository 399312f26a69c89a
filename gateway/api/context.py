"""What travels with a request through the handlers, and the header fields that every answer carries."""

import random
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.hdrs import METH_CONNECT

from gateway.api.errors import RequestError, error_response, refusal
from gateway.execution.client import SERVER
from gateway.routing.snapshot import Snapshot

REQUEST_ID: Final = web.RequestKey("REQUEST_ID", str)
GENERATION: Final = web.RequestKey("GENERATION", int)
_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-fv:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
_NOWHERE: Final = (
    "nothing is served at this path, expected /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings or "
    "/v1/models"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_id_of(offered: str | None) -> str:
    """Return the client's request id if it is sane (printable, short), a new one otherwise."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered
    return random.getrandbits(128).to_bytes(16).hex()


def check_framing(request: web.BaseRequest) -> None:
    """Refuse requests that HTTP/1.1 forbids but aiohttp's parser accepts.

    Raises:
        RequestError: 505 for another version (RFC 9110 15.6.6), 400 for an invalid Host (RFC 9112 3.2) and for a
            transfer coding in HTTP/1.0, 501 for one that is not chunked (RFC 9112 6.1).

    """
    version = request.version
    if version not in (HttpVersion10, HttpVersion11):
        raise RequestError(505, "expected HTTP/1.1", code="version_not_supported")
    if not is_host(request.headers.get("Host", "")):
        raise RequestError(400, "host: expected a host and perhaps a port", code="malformed_request", param="host")
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None and version == HttpVersion10:
        raise RequestError(400, "transfer-encoding: expected none in HTTP/1.0", code="malformed_request")
    if coding is not None and coding.lower() != "chunked":
        raise RequestError(501, "transfer-encoding: expected chunked alone", code="unsupported_coding")


@lru_cache(maxsize=64)
def is_host(text: str) -> bool:
    """Return whether a Host field names a host and perhaps a port, or is empty (RFC 9112 3.2)."""
    return _HOST.fullmatch(text) is not None


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Assign the request its id, and give every error OpenAI's shape.

    An error sent before the whole body has arrived closes the connection: the client may then not send the rest
    (RFC 9110 10.1.1). So does an error about the framing: what follows could be the body (RFC 9112 6.1).
    """
    request[REQUEST_ID] = request_id_of(request.headers.get("x-request-id"))
    is_framed = False
    try:
        check_framing(request)
        is_framed = True
        return await handler(request)
    except RequestError as error:
        answer = refusal(error)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not answered here, expected {allowed}"
        answer = error_response(405, message, code="method_not_allowed", headers={"Allow": allowed})
    except web.HTTPNotFound:
        answer = error_response(404, _NOWHERE, code="not_found")
    if not (is_framed and request.content.is_eof()):
        answer.force_close()
    return answer


class Stamp:
    """Sets the header fields that every answer carries.

    `current` returns the snapshot in force, `closing` whether connections are closed after their answer
    (RFC 9112 9.6): the gateway is about to stop, or keeps none. So are those that would change their protocol
    (RFC 9110 9.3.6, 7.8): aiohttp parses what follows CONNECT, its body included, as a request, and loses what follows
    an Upgrade. In HTTP/1.0, a body of undeclared length ends with the connection, which aiohttp would keep alive for a
    client that asks for that.
    """

    def __init__(self, current: Callable[[], Snapshot | None], closing: Callable[[], bool]) -> None:
        """Call these for each answer."""
        self._current = current
        self._closing = closing

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        """Stamp an answer that is about to be sent."""
        headers = response.headers
        snapshot = self._current()
        headers["Server"] = SERVER
        headers["x-request-id"] = request.get(REQUEST_ID) or request_id_of(request.headers.get("x-request-id"))
        if "x-gateway-generation" not in headers:
            headers["x-gateway-generation"] = str(request.get(GENERATION, snapshot.generation if snapshot else 0))
        is_endless = request.version < HttpVersion11 and response.content_length is None
        if is_endless or self._closing() or request.method == METH_CONNECT or "Upgrade" in request.headers:
            response.force_close()
            headers["Connection"] = "close"  # aiohttp has decided on this field by now
