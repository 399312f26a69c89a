"""What servers and providers say when they refuse: the words in the bodies of their errors.

A status alone does not tell. A 400 may be about the key, the model's name or the prompt, and the fields of an error
(`type`, `code`) mean something else at each of them. A body comes in lower case, as `told`. Of a 400 or a 500 the
beginning of the message counts, where a deployment is put out or spared for it: what comes later may quote the request.
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
"""No client can help what these say of an address (RFC 9110 15.5.5, 15.5.6, 15.5.8, 15.5.20, 15.5.22, 15.6.2)."""

# What the servers say when a prompt does not fit, lower case. OpenAI, OpenRouter: the code `context_length_exceeded`,
# "maximum context length is N tokens"; vLLM: the same words, or "longer than the maximum model length of N"; SGLang:
# "is longer than the model's context length", "exceeds the model's maximum context length", of its memory "Input length
# (N tokens) exceeds the maximum allowed length"; llama.cpp: `exceed_context_size_error`, "exceeds the available context
# size", for embeddings (status 500) "input (N tokens) is too large to process"; Ollama: "input length exceeds the
# context length"; LM Studio: "greater than the context length"; Anthropic: "prompt is too long", "exceed context
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
# llama.cpp, of what its model wrote and it cannot read: "Failed to parse input at pos N: ...", which quotes it.
_QUOTING: Final = re.compile(rb'"message":\s*"failed to parse input at pos')
# llama.cpp: "Loading model"; others while they start: "Model is loading", "is currently loading", "server is starting".
_LOADING: Final = (b"loading model", b"is loading", b"currently loading", b"is starting", b"not ready", b"warming up")
# OpenAI, of one model that has too much to do: "The server is overloaded or not ready yet".
_BUSY: Final = b"overloaded"
# A refusal of what was asked: OpenAI `content_policy_violation`, `content_filter`; Azure "content management policy";
# OpenRouter (403) "requires moderation ... your input was flagged"; Anthropic "content filtering policy"; xAI
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
# OpenAI, of a credit that is spent, with status 429: both fields name `insufficient_quota`.
_SPENT: Final = re.compile(rb'"(?:type|code)":\s*"insufficient_quota"')
# What a model or an account cannot do for this request, which is about neither the key nor the model's being there.
# OpenAI: 404 "not supported in the v1/completions endpoint", 403 "not allowed to generate embeddings from this model";
# vLLM: "does not support"; OpenRouter: 404 "No endpoints found that support tool use", "No allowed providers are
# available for the selected model", 402 "requires more credits, or fewer max_tokens"; Gemini, of what the request
# names: 403 "You do not have permission to access the File NAME or it may not exist.", "CachedContent not found (or
# permission denied)".
_INCAPABLE: Final = (
    b"not supported in the v1/",
    b"not allowed to generate embeddings",
    b"model does not support",
    b"no endpoints found",
    b"no allowed providers",
    b"fewer max_tokens",
    b"permission to access the file",
    b"cachedcontent not found",
)
# LM Studio, with status 400: `{"error": "The model has crashed without additional information. (Exit code: null)"}`,
# "Model unloaded by user or API request.", "Model is unloaded.", "No models loaded. ...", "Failed to load model ...".
# Only the beginning counts: what follows may quote the request.
_GONE: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:the model has crashed|model (?:is )?(?:un|re)loaded|no models loaded'
    rb"|failed to load model)"
)
# Of a name that is no model's, with status 400. DeepSeek: "Model Not Exist"; OpenRouter: "NAME is not a valid model
# ID"; Mistral: "Invalid model: NAME"; LM Studio: "Invalid model identifier "NAME". ..."; LiteLLM: "/chat/completions:
# Invalid model name passed in model=NAME. ..."; llama.cpp's server of several models: "model 'NAME' not found", at
# first "model not found"; llama-swap: "could not find real modelID for NAME"; OpenAI: "invalid model ID"; Perplexity:
# "Invalid model 'NAME'. ..."; GitHub Models: "Unknown model: NAME"; Groq: "The model `NAME` has been decommissioned
# ..."; Bedrock: "The provided model identifier is invalid.". OpenRouter's may be of a model that the client named
# besides, in `models`.
_NO_MODEL: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:model not (?:exist|found)|invalid model(?: identifier |: | \'| id")'
    rb'|(?P<name>[^\s"]+) is not a valid model id|/[a-z/]+: invalid model name passed'
    rb"|model '[^'\"]*' not found|could not find real modelid for |unknown model: "
    rb'|the model [^\s"]+ has been decommissioned|the provided model identifier is invalid)'
)
# Of a key or an account, with status 400. Gemini: "API key not valid. ...", "API key expired. ...", "Missing or invalid
# Authorization header.", "User location is not supported for the API use."; xAI: "Incorrect API key provided: ...";
# Anthropic: "Your credit balance is too low ...", "You have reached your specified API usage limits. ..."; LiteLLM:
# "Budget has been exceeded! Current cost: ...", "... Team=...", and of a key that is not its master's, where it has no
# database, "No connected db."; its "ExceededBudget: End User=..." is of a user that the client named.
_NO_KEY: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:api key (?:not valid|expired)|missing or invalid authorization|incorrect api key'
    rb"|user location is not supported|your credit balance is too low|you have reached your specified api usage limits"
    rb"|budget has been exceeded! (?:current cost|team=)|no connected db\.)"
)
# llama.cpp's server, with status 500, when it cannot take a request as it is: "image input is not supported - hint:
# ...", "tools param requires --jinja flag", "Failed to parse tools: ...", "Failed to load image or audio file", of an
# image "Invalid url value", "url must be base64 encoded"; until 2026 also "Cannot have 2 or more assistant messages at
# the end of the list.", "'messages' is required", and of a chat template that refuses the conversation "Conversation
# roles must alternate ... at row 1, column 9:\n...", then "\n------------\nWhile executing CallExpression ... Jinja
# Exception: ...". The end of the line counts: without it the words may be quoted. vLLM's, of an image that it cannot
# fetch: "404, message='Not Found', url=..."; SGLang's, of one that it cannot fetch or read: "Internal server error: An
# exception occurred while loading multimodal data: Error while loading ...".
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


def says_policy(told: bytes) -> bool:
    """Tell whether an error refuses what was asked for what it says."""
    return _says(told, _POLICY)


def says_gone(told: bytes) -> bool:
    """Tell whether an error with status 400 says that the model is there no longer."""
    return _GONE.search(told) is not None


def says_incapable(status: int, told: bytes) -> bool:
    """Tell whether an error is about what a model or an account cannot do for this request.

    A 403 that is a page is, too: of what stands before an API and may have looked at the text, as Cloudflare's.
    """
    is_page = status == 403 and told.lstrip().startswith(b"<")  # noqa: PLR2004 - RFC 9110 15.5.4
    return is_page or _says(told, _INCAPABLE)


def says_missing(status: int, told: bytes, model: str) -> bool:
    """Tell whether an error says that there is no such model as was asked for."""
    match status:
        case 404:
            return b"model" in told
        case 400:
            found = _NO_MODEL.search(told)
            return found is not None and found["name"] in (None, model.encode().lower())
        case _:
            return False


def says_unserved(status: int, told: bytes) -> bool:
    """Tell whether an error says that the request is not served, unless it is about the model's name.

    So does a page of what stands before a box: nginx's, that a body is too large for it, or that it wants TLS.
    """
    if status in _UNSERVED_STATUSES or (status in _PAGES and told.lstrip().startswith(b"<")):
        return True
    return status == 500 and _UNFIT.search(told) is not None  # noqa: PLR2004 - as above


def says_too_long(told: bytes) -> bool:
    """Tell whether an error says that the prompt does not fit."""
    return _says(told, _CONTEXT_LENGTH) and not _says(told, _POLICY) and not _QUOTING.search(told)


def says_key(status: int, told: bytes) -> bool:
    """Tell whether an error is about the key or its account, unless it speaks of what was asked."""
    match status:
        case 400:
            return _NO_KEY.search(told) is not None
        case 429:
            return _SPENT.search(told) is not None
        case _:
            return status in _KEY_STATUSES


def says_loading(body: bytes) -> bool:
    """Tell whether the body of a 503 says that the box is loading its model."""
    told = body.lower()
    return _says(told, _LOADING) and _BUSY not in told


class _Error(Struct):
    code: int | None = None


class _ErrorAnswer(Struct):
    error: _Error | str | None = None


_error_answer: Final = msgspec.json.Decoder(_ErrorAnswer, strict=False)  # a code may be written as a text


def code_of(error: bytes) -> int:
    """Read the status that an error object names as its code; 0 for none."""
    try:
        told = _error_answer.decode(error).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return (told.code or 0) if isinstance(told, _Error) else 0


_ABOUT_KEYS: Final = frozenset(
    {"invalid_api_key", "authentication_error", "permission_error", "insufficient_quota", "billing_error"}
)
"""How OpenAI and Anthropic name what is about a key or its account, as `code` or `type`, beside any status."""


class _Told(Struct):
    error: object = None
    message: object = None
    detail: object = None
    code: object = None
    type: object = None

    @property
    def is_about_keys(self) -> bool:
        """Whether a status or a name in it says so."""
        fields = self.error if isinstance(self.error, dict) else {}
        named = (str(each) for each in (self.code, self.type, fields.get("code"), fields.get("type")))
        return any(each in _ABOUT_KEYS or each in _KEY_CODES for each in named)


_told: Final = msgspec.json.Decoder(_Told)


def message_of(error: bytes) -> str:
    """Read the message of an error in JSON; empty where there is none, and where it is about the key or the account."""
    try:
        told = _told.decode(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    inner = told.error.get("message") if isinstance(told.error, dict) else told.error
    found = (each for each in (inner, told.message, told.detail) if isinstance(each, str))
    return "" if told.is_about_keys else next(found, "")


def _says(told: bytes, phrases: Sequence[bytes]) -> bool:
    return any(phrase in told for phrase in phrases)
