"""The words that servers and providers use in the bodies of their errors.

A status alone is not enough. A 400 may be about the key, the model's name or the prompt, and the fields of an error
(`type`, `code`) mean something else with each provider. Bodies are passed in lower case, as `told`. Where the text of a
400 or a 500 decides whether a deployment is put out or spared, only the beginning of the message counts: what comes
later may quote the request.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

_KEY_STATUSES: Final = frozenset({402, 403})
_KEY_CODES: Final = frozenset({"401", "402", "403"})
_PAGES: Final = frozenset(range(400, 500)) - {401, 402, 403}
_UNSERVED_STATUSES: Final = frozenset({404, 405, 407, 421, 426, 501})
"""These are about the address, not about the client (RFC 9110 15.5.5, 15.5.6, 15.5.8, 15.5.20, 15.5.22, 15.6.2)."""

# What servers say when a prompt does not fit, in lower case. OpenAI, OpenRouter: the code `context_length_exceeded`,
# "maximum context length is N tokens"; vLLM: the same words, or "longer than the maximum model length of N"; SGLang:
# "is longer than the model's context length", "exceeds the model's maximum context length", about its memory "Input
# length (N tokens) exceeds the maximum allowed length"; llama.cpp: `exceed_context_size_error`, "exceeds the available
# context size", for embeddings (status 500) "input (N tokens) is too large to process"; Ollama: "input length exceeds
# the context length"; LM Studio: "greater than the context length"; Anthropic: "prompt is too long", "exceed context
# limit"; Gemini: "exceeds the maximum number of tokens"; Together (status 422): "`inputs` tokens + `max_new_tokens`
# must be <= N"; xAI: "maximum prompt length is N"; behind OpenRouter: "exceeds the maximum allowed input length".
_CONTEXT_LENGTH: Final = (
    b"context_length_exceeded",
    b"exceed_context_size",
    b"context length",
    b"context size",
    b"context window",
    b"context limit",
    b"maximum model length",
    b"prompt is too long",
    b"input is too large to process",
    b"tokens) is too large to process",
    b"input is too long",
    b"exceeds the maximum number of tokens",
    b"tokens) exceeds the maximum allowed length",
    b"exceeds the maximum allowed input length",
    b"tokens + `max_new_tokens` must be",
    b"maximum prompt length is",
)
# llama.cpp, when it cannot parse its model's output: "Failed to parse input at pos N: ...", which quotes the output.
_QUOTING: Final = re.compile(rb'"message":\s*"failed to parse input at pos')
# llama.cpp: "Loading model"; others while they start: "Model is loading", "is currently loading", "server is starting".
_LOADING: Final = (b"loading model", b"is loading", b"currently loading", b"is starting", b"not ready", b"warming up")
# OpenAI, when one model has too much load: "The server is overloaded or not ready yet".
_BUSY: Final = b"overloaded"
# A refusal because of the content: OpenAI `content_policy_violation`, `content_filter`; Azure "content management
# policy"; OpenRouter (403) "requires moderation ... your input was flagged"; Anthropic "content filtering policy"; xAI
# (403) "Content violates usage guidelines. ... Failed check: SAFETY_CHECK_TYPE_...".
_POLICY: Final = (
    b"content_policy",
    b"content_filter",
    b"content management policy",
    b"content filtering policy",
    b"moderation",
    b"flagged",
    b"safety system",
    b"violates usage guidelines",
)
# OpenAI, when the credit is spent, with status 429: both fields are `insufficient_quota`.
_SPENT: Final = re.compile(rb'"(?:type|code)":\s*"insufficient_quota"')
# What a model or an account cannot do for this request; the key is good and the model exists.
# OpenAI: 404 "not supported in the v1/completions endpoint", "only supported in v1/responses and not in
# v1/chat/completions", 403 "not allowed to generate embeddings from this model"; vLLM: "does not support"; OpenRouter:
# 404 "No endpoints found that support tool use", "No allowed providers are available for the selected model", 402
# "requires more credits, or fewer max_tokens"; Gemini: 404 "models/NAME is not found for API version v1, or is not
# supported for embedContent" (of a model without embeddings), and about what the request names 403 "You do not have
# permission to access the File NAME or it may not exist.", "CachedContent not found (or permission denied)".
_INCAPABLE: Final = (
    b"not supported in the v1/",
    b"only supported in v1/",
    b"or is not supported for embedcontent",
    b"not allowed to generate embeddings",
    b"model does not support",
    b"no endpoints found",
    b"no allowed providers",
    b"fewer max_tokens",
    b"permission to access the file",
    b"cachedcontent not found",
)
# LM Studio, with status 200: `{"error":"Unexpected endpoint or method. (POST /v1/responses)"}`.
_UNEXPECTED: Final = re.compile(rb'\s*\{\s*"error":\s*"unexpected endpoint or method')
# LM Studio, with status 400: `{"error": "The model has crashed without additional information. (Exit code: null)"}`,
# "Model unloaded by user or API request.", "Model is unloaded.", "No models loaded. ...", "Failed to load model ...".
# Only the beginning counts: what follows may quote the request.
_GONE: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:the model has crashed|model (?:is )?(?:un|re)loaded|no models loaded'
    rb"|failed to load model)"
)
# An unknown model name, with status 400. DeepSeek: "Model Not Exist"; OpenRouter: "NAME is not a valid model ID";
# Mistral: "Invalid model: NAME"; LM Studio: "Invalid model identifier "NAME". ..."; LiteLLM: "/chat/completions:
# Invalid model name passed in model=NAME. ..."; llama.cpp's server for several models: "model 'NAME' not found", in
# early versions "model not found"; llama-swap: "could not find real modelID for NAME"; OpenAI: "invalid model ID";
# Perplexity: "Invalid model 'NAME'. ..."; GitHub Models: "Unknown model: NAME"; Groq: "The model `NAME` has been
# decommissioned ..."; Bedrock: "The provided model identifier is invalid.". OpenRouter's may be about another model,
# which the client named in `models`.
_NO_MODEL: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:model not (?:exist|found)|invalid model(?: identifier |: | \'| id")'
    rb'|(?P<name>[^\s"]+) is not a valid model id|/[a-z/]+: invalid model name passed'
    rb"|model '[^'\"]*' not found|could not find real modelid for |unknown model: "
    rb'|the model [^\s"]+ has been decommissioned|the provided model identifier is invalid)'
)
# About a key or an account, with status 400. Gemini: "API key not valid. ...", "API key expired. ...", "Missing or
# invalid Authorization header.", "User location is not supported for the API use."; xAI: "Incorrect API key provided:
# ..."; Anthropic: "Your credit balance is too low ...", "You have reached your specified API usage limits. ...";
# LiteLLM: "Budget has been exceeded! Current cost: ...", "... Team=...", and, without a database, about any key but the
# master key "No connected db."; its "ExceededBudget: End User=..." is about a user that the client named.
_NO_KEY: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:api key (?:not valid|expired)|missing or invalid authorization|incorrect api key'
    rb"|user location is not supported|your credit balance is too low|you have reached your specified api usage limits"
    rb"|budget has been exceeded! (?:current cost|team=)|no connected db\.)"
)
# llama.cpp's server, with status 500, when it cannot take a request as it is: "image input is not supported - hint:
# ...", "tools param requires --jinja flag", "Failed to parse tools: ...", "Failed to load image or audio file", about
# an image "Invalid url value", "url must be base64 encoded"; until 2026 also "Cannot have 2 or more assistant messages
# at the end of the list.", "'messages' is required", and from a chat template that refuses the conversation
# "Conversation roles must alternate ... at row 1, column 9:\n...", then "\n------------\nWhile executing CallExpression
# ... Jinja Exception: ...". The end of the line counts: without it the words may be quoted. vLLM, about an image that
# it cannot fetch: "404, message='Not Found', url=..."; SGLang, about one that it cannot fetch or read: "Internal server
# error: An exception occurred while loading multimodal data: Error while loading ...".
_UNFIT: Final = re.compile(
    rb'"message":\s*"(?:(?:image|audio|video) input is not supported|tool(?:s|_choice) param requires'
    rb"|failed to (?:parse (?:messages|tools)|load image or audio|download (?:image|video))|unknown reasoning format"
    rb"|assistant (?:response prefill is|message must)|unsupported (?:param|content)|only (?:no echo|one completion)"
    rb"|cannot (?:use (?:both json_schema|custom grammar)|have 2 or more assistant)|all non-assistant messages"
    rb"|invalid (?:tool_choice|type for|(?:(?:image|video)_url\.)?url (?:value|format))|response_format type must"
    rb"|(?:(?:image|video)_url\.)?url must be base64|input_audio\.format must|logprobs is not|top_logprobs requires"
    rb"|'messages' is|expected '(?:messages|content)'|\\\"prompt\\\" is|4\d\d, message='[^'\"\\]*', url="
    rb"|internal server error: an exception occurred while loading [a-z]+ data(?: at index \d+)?: error while loading"
    rb'|\\n-+\\nwhile executing|(?!failed to parse input)[^"\\]* at row \d+, column \d+:\\n)'
)


def says_unexpected(told: bytes) -> bool:
    """Return whether an error with status 200 says that there is no such path: LM Studio's."""
    return _UNEXPECTED.match(told) is not None


def says_policy(told: bytes) -> bool:
    """Return whether an error refuses the request because of its content."""
    return _says(told, _POLICY)


def says_gone(told: bytes) -> bool:
    """Return whether an error with status 400 says that the model is no longer loaded."""
    return _GONE.search(told) is not None


def says_incapable(status: int, told: bytes) -> bool:
    """Return whether an error is about what a model or an account cannot do for this request.

    A 403 with an HTML page counts too: it comes from a proxy in front of an API, such as Cloudflare, which may have
    inspected the text.
    """
    is_page = status == 403 and told.lstrip().startswith(b"<")  # noqa: PLR2004 - RFC 9110 15.5.4
    return is_page or _says(told, _INCAPABLE)


def says_missing(status: int, told: bytes, model: str) -> bool:
    """Return whether an error says that the model asked for does not exist."""
    match status:
        case 404:
            return b"model" in told
        case 400:
            found = _NO_MODEL.search(told)
            return found is not None and found["name"] in (None, model.encode().lower())
        case _:
            return False


def says_unserved(status: int, told: bytes) -> bool:
    """Return whether an error says that the request is not served, unless it is about the model's name.

    A page from a proxy in front of a box counts too: from nginx, that a body is too large, or that it wants TLS.
    """
    if status in _UNSERVED_STATUSES or (status in _PAGES and told.lstrip().startswith(b"<")):
        return True
    return status == 500 and _UNFIT.search(told) is not None  # noqa: PLR2004 - as above


def says_too_long(told: bytes) -> bool:
    """Return whether an error says that the prompt does not fit."""
    return _says(told, _CONTEXT_LENGTH) and not _says(told, _POLICY) and not _QUOTING.search(told)


def says_key(status: int, told: bytes) -> bool:
    """Return whether an error is about the key or its account; a 402 or 403 may still be about the content."""
    match status:
        case 400:
            return _NO_KEY.search(told) is not None
        case 429:
            return _SPENT.search(told) is not None
        case _:
            return status in _KEY_STATUSES


def says_loading(body: bytes) -> bool:
    """Return whether the body of a 503 says that the box is loading its model."""
    told = body.lower()
    return _says(told, _LOADING) and _BUSY not in told


class _Error(Struct):
    code: int | None = None


class _ErrorAnswer(Struct):
    error: _Error | str | None = None


_error_answer: Final = msgspec.json.Decoder(_ErrorAnswer, strict=False)  # a code may be written as a string
_list: Final = msgspec.json.Decoder(tuple[msgspec.Raw])


def _unwrapped(error: bytes) -> bytes | msgspec.Raw:
    """Take an error out of the list that it is alone in: Gemini's.

    Raises:
        DecodeError: it is no such list, though it begins like one.

    """
    return _list.decode(error)[0] if error.lstrip()[:1] == b"[" else error


def code_of(error: bytes) -> int:
    """Return the status that an error object has as its code; 0 if it has none."""
    try:
        told = _error_answer.decode(_unwrapped(error)).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return (told.code or 0) if isinstance(told, _Error) else 0


_ABOUT_KEYS: Final = frozenset(
    {"invalid_api_key", "authentication_error", "permission_error", "insufficient_quota", "billing_error"}
)
"""What OpenAI and Anthropic write as `code` or `type` of errors about a key or its account, with any status."""


class _Told(Struct):
    error: object = None
    message: object = None
    detail: object = None
    code: object = None
    type: object = None

    @property
    def is_about_keys(self) -> bool:
        """Whether its `code` or `type` says so."""
        fields = self.error if isinstance(self.error, dict) else {}
        named = (str(each) for each in (self.code, self.type, fields.get("code"), fields.get("type")))
        return any(each in _ABOUT_KEYS or each in _KEY_CODES for each in named)


_told: Final = msgspec.json.Decoder(_Told)


def message_of(error: bytes) -> str:
    """Return the message of a JSON error; empty if it has none, or is about the key or the account."""
    try:
        told = _told.decode(_unwrapped(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    inner = told.error.get("message") if isinstance(told.error, dict) else told.error
    found = (each for each in (inner, told.message, told.detail) if isinstance(each, str))
    return "" if told.is_about_keys else next(found, "")


def _says(told: bytes, phrases: Sequence[bytes]) -> bool:
    return any(phrase in told for phrase in phrases)
