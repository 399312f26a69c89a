"""Which clients may ask for models: they send their key as a bearer token (RFC 6750 2.1), as OpenAI's do."""

from collections.abc import Mapping

from aiohttp.hdrs import AUTHORIZATION

from gateway.api.errors import RequestError
from gateway.routing.clients import Clients

_SCHEME = "bearer "


def admitted(headers: Mapping[str, str], clients: Clients) -> str:
    """Return the name of the client that asks.

    Raises:
        RequestError: 401 without a key, or with an unknown one (RFC 9110 15.5.2).

    """
    told = headers.get(AUTHORIZATION, "")
    name = clients.name_of(told[len(_SCHEME) :].strip()) if told[: len(_SCHEME)].lower() == _SCHEME else None
    if name is None:
        message = "the API key is not known here" if told else "no API key was sent, expected Authorization: Bearer KEY"
        raise RequestError(401, message, code="invalid_api_key")
    return name
