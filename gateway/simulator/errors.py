"""The errors of servers and providers, each in its own words and shape."""

import json
from typing import Literal

from aiohttp import web

from gateway.simulator.script import Json

Dialect = Literal["openai", "vllm", "sglang", "llamacpp", "ollama", "anthropic", "gemini", "openrouter"]
PolicyDialect = Literal["openai", "azure"]
LoadingDialect = Literal["llamacpp", "vllm"]

_CODES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", None),
    529: ("overloaded_error", None),
}


def error(message: str, kind: str | None, code: str | int | None = None, param: str | None = None) -> Json:
    """Return an error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


# The texts of OpenAI, vLLM 0.10, SGLang 0.5, llama.cpp's server, Ollama's OpenAI endpoint, Anthropic's Messages API,
# Gemini's OpenAI endpoint (a list of one) and OpenRouter.
_TOO_LONG: dict[Dialect, object] = {
    "openai": error(
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
        "invalid_request_error",
        "context_length_exceeded",
        "messages",
    ),
    "vllm": error(
        "This model's maximum context length is 8192 tokens. However, you requested 9001 tokens in the messages.",
        "BadRequestError",
        400,
    ),
    "sglang": {
        "object": "error",
        "message": "The input (9001 tokens) is longer than the model's context length (8192 tokens).",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    "llamacpp": {
        "error": {
            "code": 400,
            "message": "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 9001,
            "n_ctx": 8192,
        }
    },
    "ollama": error("the input length exceeds the context length", "invalid_request_error"),
    "anthropic": {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: 9001 tokens > 8192 maximum"},
    },
    "gemini": [
        {
            "error": {
                "code": 400,
                "message": "The input token count (9001) exceeds the maximum number of tokens allowed (8192).",
                "status": "INVALID_ARGUMENT",
            }
        }
    ],
    "openrouter": {
        "error": {
            "message": "This endpoint's maximum context length is 8192 tokens. However, you requested about 9001 tokens"
            " (9001 of text input). Please reduce the length of either one.",
            "code": 400,
            "metadata": {"provider_name": None},
        }
    },
}


def refusal(kind: type[web.HTTPError], message: str, code: str | None) -> web.HTTPError:
    """Return the exception that a handler raises to refuse a request."""
    return kind(text=json.dumps(error(message, "invalid_request_error", code)), content_type="application/json")


def of_status(status: int) -> Json:
    """Return an error that goes with a status."""
    return error(f"Simulated: status {status}.", *_CODES.get(status, ("server_error", None)))


def too_long(says: Dialect) -> object:
    """Return the error for a prompt of 9001 tokens where 8192 fit."""
    return _TOO_LONG[says]


def against_policy(says: PolicyDialect) -> Json:
    """Return the error for a prompt that the provider's content filter rejects, in the words of OpenAI or Azure."""
    if says == "openai":
        text = "Your request was rejected as a result of our safety system."
        return error(text, "invalid_request_error", "content_policy_violation")
    text = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    return error(text, None, "content_filter", "prompt")


def loading(says: LoadingDialect) -> bytes:
    """Return the body of the 503 while a model loads: llama.cpp states the reason, vLLM's and SGLang's is empty."""
    if says == "vllm":
        return b""
    return json.dumps({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}).encode()
