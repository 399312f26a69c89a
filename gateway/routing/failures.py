"""Why an attempt failed, and what to do about it.

A failure is a value: a cause, and what is known beside it. `TABLE` says what follows from each cause while nothing of
an answer has gone to the client, and for the attempts to rescue a stream that broke after that.

'We erred' and 'the endpoint erred' are different causes: `LOCAL_FAULT` blames nobody and is not tried elsewhere,
because the next endpoint would need the same file descriptor.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct


class Cause(Enum):
    """What went wrong with an attempt."""

    CONNECT_REFUSED = "connect_refused"
    CONNECT_RESET = "connect_reset"
    CONNECT_TIMEOUT = "connect_timeout"
    UNREACHABLE = "unreachable"
    DNS = "dns"
    TLS = "tls"
    DISCONNECTED = "disconnected"
    MALFORMED_ANSWER = "malformed_answer"
    REDIRECTED = "redirected"
    RATE_LIMITED = "rate_limited"
    SEND_AGAIN = "send_again"
    SERVER_ERROR = "server_error"
    LOADING = "loading"
    KEY_REFUSED = "key_refused"
    MODEL_MISSING = "model_missing"
    NOT_SERVED = "not_served"
    CONTEXT_LENGTH = "context_length"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a clock's name
    TOTAL_TIMEOUT = "total_timeout"
    STALLED = "stalled"
    ERROR_ANSWER = "error_answer"
    EMPTY_ANSWER = "empty_answer"
    CUT_ANSWER = "cut_answer"
    WRONG_TYPE = "wrong_content_type"
    LOCAL_FAULT = "local_fault"
    RESCUE_REFUSED = "rescue_refused"
    REPLAY_DIFFERS = "replay_differs"


class Verdict(Enum):
    """What follows from a failure, while nothing has gone to the client."""

    RETRY_HERE = "once more on a fresh connection"
    NEXT = "next deployment"
    LARGER = "next deployment with a larger context"
    CLIENT = "tell the client"


class Failure(Struct, frozen=True):
    """One attempt's failure.

    `status` is the upstream's HTTP status where one came, or the 4xx that its error object means under a good one;
    `retry_after` the seconds it asked to wait. `stale` tells that a pooled connection turned out to be closed before a
    byte of an answer arrived: nobody's fault, and safe to repeat on a fresh one. `detail` is for the log: no URL, no
    key.
    """

    cause: Cause
    detail: str = ""
    status: int | None = None
    retry_after: float | None = None
    stale: bool = False


class Rule(Struct, frozen=True):
    """What follows from a cause.

    `passes`: it may be over in a moment, so that its deployment gets one more try before its tier is left. `blames`: it
    counts against the deployment's breaker. `out`: the deployment is out at once, for so many seconds.
    """

    verdict: Verdict = Verdict.NEXT
    passes: bool = False
    blames: bool = True
    out: float | None = None


KEY_OUT: Final = 600.0
MODEL_OUT: Final = 60.0

TABLE: Final[Mapping[Cause, Rule]] = MappingProxyType(
    {
        Cause.CONNECT_REFUSED: Rule(),
        Cause.CONNECT_RESET: Rule(passes=True),
        Cause.CONNECT_TIMEOUT: Rule(),
        Cause.UNREACHABLE: Rule(),
        Cause.DNS: Rule(),
        Cause.TLS: Rule(),
        Cause.DISCONNECTED: Rule(passes=True),
        Cause.MALFORMED_ANSWER: Rule(),
        Cause.REDIRECTED: Rule(),
        Cause.RATE_LIMITED: Rule(passes=True),
        Cause.SEND_AGAIN: Rule(passes=True),
        Cause.SERVER_ERROR: Rule(passes=True),
        Cause.LOADING: Rule(blames=False),
        Cause.KEY_REFUSED: Rule(out=KEY_OUT),
        Cause.MODEL_MISSING: Rule(out=MODEL_OUT),
        Cause.NOT_SERVED: Rule(blames=False),
        Cause.CONTEXT_LENGTH: Rule(Verdict.LARGER, blames=False),
        Cause.FIRST_TOKEN_TIMEOUT: Rule(),
        Cause.TOTAL_TIMEOUT: Rule(Verdict.CLIENT, blames=False),
        Cause.STALLED: Rule(),
        Cause.ERROR_ANSWER: Rule(),
        Cause.EMPTY_ANSWER: Rule(),
        Cause.CUT_ANSWER: Rule(),
        Cause.WRONG_TYPE: Rule(),
        Cause.LOCAL_FAULT: Rule(Verdict.CLIENT, blames=False),
        Cause.RESCUE_REFUSED: Rule(blames=False),
        Cause.REPLAY_DIFFERS: Rule(Verdict.CLIENT, blames=False),
    }
)

_BY_STATUS: Final[Mapping[int, Cause]] = MappingProxyType(
    {401: Cause.KEY_REFUSED, 408: Cause.SEND_AGAIN, 425: Cause.SEND_AGAIN, 429: Cause.RATE_LIMITED}
)
_KEY_STATUSES: Final = frozenset({402, 403})
_UNSERVED_STATUSES: Final = frozenset({404, 501})
_CONTEXT_STATUSES: Final = frozenset({400, 413, 422, 500})
_CLIENTS: Final = range(400, 500)
_SILENT: Final = frozenset({Cause.CONNECT_TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, Cause.TOTAL_TIMEOUT, Cause.STALLED})
_OURS: Final = frozenset({Cause.LOCAL_FAULT, Cause.LOADING})

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
# OpenRouter (403) "requires moderation ... your input was flagged"; Anthropic "content filtering policy".
_POLICY: Final = (
    b"content_policy",
    b"content_filter",
    b"content management policy",
    b"content filtering policy",
    b"moderation",
    b"flagged",
    b"safety system",
)
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
# first "model not found"; llama-swap: "could not find real modelID for NAME". OpenRouter's may be of a model that
# the client named besides, in `models`.
_NO_MODEL: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:model not (?:exist|found)|invalid model(?: identifier|:) '
    rb'|(?P<name>[^\s"]+) is not a valid model id|/[a-z/]+: invalid model name passed'
    rb"|model '[^'\"]*' not found|could not find real modelid for )"
)
# Of a key or an account, with status 400. Gemini: "API key not valid. ...", "API key expired. ...", "Missing or invalid
# Authorization header.", "User location is not supported for the API use."; xAI: "Incorrect API key provided: ...";
# Anthropic: "Your credit balance is too low ...", "You have reached your specified API usage limits. ..."; LiteLLM:
# "Budget has been exceeded! Current cost: ...", "... Team=..."; its "ExceededBudget: End User=..." is of a user that
# the client named.
_NO_KEY: Final = re.compile(
    rb'"(?:error|message)":\s*"(?:api key (?:not valid|expired)|missing or invalid authorization|incorrect api key'
    rb"|user location is not supported|your credit balance is too low|you have reached your specified api usage limits"
    rb"|budget has been exceeded! (?:current cost|team=))"
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


def status_failure(status: int, body: bytes = b"", retry_after: float | None = None, model: str = "") -> Failure | None:
    """Give the failure that an upstream's error answer means, if it means one; every other is the client's answer.

    408, 425, 429 and 5xx may succeed elsewhere (RFC 9110 15.5.9, RFC 8470 5.2, RFC 6585 4, RFC 9110 15.6). 401 is about
    the gateway's own key, and so are 402 and 403, unless they speak of what was asked. 404 is about the deployment:
    about its model where it says so, else about its address or what it can do, as 501 is, and a 402 or 403 that says
    so, and a 403 that is a page. A redirect is never followed: it would carry the key to where the configuration did
    not send it. A 400 that is about the key or the account is as a 401, one that says that there is no such model as a
    404, one that says that it is gone as a 5xx; a 500 that is about the request is as a 501.

    `body` is the beginning of the answer's body, `retry_after` the seconds it asks to wait, `model` the name that was
    asked for.
    """
    told = body.lower()
    cause = _cause_of(status, told, model)
    if cause is None:
        return None
    advice = _ADVICE.get(cause)
    return Failure(cause, f"status {status}: {advice}" if advice else f"status {status}", status, retry_after)


_ADVICE: Final[Mapping[Cause, str]] = MappingProxyType(
    {
        Cause.REDIRECTED: "check the base URL",
        Cause.KEY_REFUSED: "check the deployment's key",
        Cause.MODEL_MISSING: "check provider_model_id",
        Cause.NOT_SERVED: "check the base URL, and what the endpoint can do",
        Cause.CONTEXT_LENGTH: "the prompt does not fit",
        Cause.LOADING: "it is loading its model",
    }
)


def _cause_of(status: int, told: bytes, model: str = "") -> Cause | None:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    policy, incapable = _says(told, _POLICY), _says(told, _INCAPABLE) or _is_firewalls(status, told)
    match status:
        case _ if _says_missing(status, told, model) and not incapable:
            return Cause.MODEL_MISSING
        case _ if _says_unserved(status, told):
            return Cause.NOT_SERVED
        case 503 if says_loading(told):
            return Cause.LOADING
        case _ if status in _CONTEXT_STATUSES and _says_too_long(told):
            return Cause.CONTEXT_LENGTH
        case _ if _says_key(status, told) and not policy:
            return Cause.NOT_SERVED if incapable else Cause.KEY_REFUSED
        case _ if status >= 500 or (status == 400 and _GONE.search(told)):  # noqa: PLR2004 - RFC 9110 15.5.1, 15.6
            return Cause.SERVER_ERROR
        case _ if 300 <= status < 400:  # noqa: PLR2004 - as above
            return Cause.REDIRECTED
    return None


def _is_firewalls(status: int, told: bytes) -> bool:
    """Tell whether a 403 is a page: of what stands before an API, and may have looked at the text, as Cloudflare's."""
    return status == 403 and told.lstrip().startswith(b"<")  # noqa: PLR2004 - RFC 9110 15.5.4


def _says_missing(status: int, told: bytes, model: str) -> bool:
    """Tell whether an error says that there is no such model as was asked for."""
    match status:
        case 404:
            return b"model" in told
        case 400:
            found = _NO_MODEL.search(told)
            return found is not None and found["name"] in (None, model.encode().lower())
        case _:
            return False


def _says_unserved(status: int, told: bytes) -> bool:
    """Tell whether an error says that the request is not served, unless it is about the model's name."""
    return status in _UNSERVED_STATUSES or (status == 500 and _UNFIT.search(told) is not None)  # noqa: PLR2004 - as above


def _says_too_long(told: bytes) -> bool:
    """Tell whether an error says that the prompt does not fit."""
    return _says(told, _CONTEXT_LENGTH) and not _says(told, _POLICY) and not _QUOTING.search(told)


def _says_key(status: int, told: bytes) -> bool:
    """Tell whether an error is about the key, unless it speaks of what was asked."""
    return status in _KEY_STATUSES or (status == 400 and _NO_KEY.search(told) is not None)  # noqa: PLR2004 - as above


class _Error(Struct):
    code: int | None = None


class _ErrorAnswer(Struct):
    error: _Error | str | None = None


_error_answer: Final = msgspec.json.Decoder(_ErrorAnswer, strict=False)  # a code may be written as a text


def error_failure(error: bytes) -> Failure:
    """Give the failure that an error object under a good status means, as the answer or as its first event.

    SGLang and vLLM send the head of a stream before they look at the request, and tell as an event, with the code 400,
    what is wrong with it. That is nobody's fault. It is asked for elsewhere all the same: vLLM did so with each
    exception, that of an engine that has died too.
    """
    told, code = error.lower(), _code_of(error)
    if _says_too_long(told):
        return Failure(Cause.CONTEXT_LENGTH, _ADVICE[Cause.CONTEXT_LENGTH], code if code in _CLIENTS else 400)
    if code in _CLIENTS and _cause_of(code, told) is None:
        return Failure(Cause.NOT_SERVED, f"an error object with the code {code} in place of an answer", code)
    return Failure(Cause.ERROR_ANSWER, "an error object in place of an answer")


def _code_of(error: bytes) -> int:
    """Read the status that an error object names as its code; 0 for none."""
    try:
        told = _error_answer.decode(error).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return (told.code or 0) if isinstance(told, _Error) else 0


def says_loading(body: bytes) -> bool:
    """Tell whether the body of a 503 says that the box is loading its model."""
    told = body.lower()
    return _says(told, _LOADING) and _BUSY not in told


def _says(told: bytes, phrases: Sequence[bytes]) -> bool:
    return any(phrase in told for phrase in phrases)


def verdict(failure: Failure) -> Verdict:
    """Say what follows from a failure before the commit point."""
    return Verdict.RETRY_HERE if failure.stale else TABLE[failure.cause].verdict


_TELLING: Final = (Cause.CONTEXT_LENGTH, Cause.LOCAL_FAULT, Cause.TOTAL_TIMEOUT, Cause.RATE_LIMITED)


def most_telling(failures: Sequence[Failure]) -> Failure | None:
    """Choose the failure that a client is told of: its own 4xx, what ended the request, a rate limit, the first one."""
    for cause in _TELLING:
        for failure in failures:
            if failure.cause is cause:
                return failure
    return failures[0] if failures else None


def status_for_client(failure: Failure | None) -> int:
    """Give the status for a client whose request failed like this.

    Its own 4xx where it is the client's; 429 for a rate limit (RFC 6585 4); 503 when the fault was ours, the box is
    loading, or nothing could be tried; 504 when time ran out; 502 otherwise (RFC 9110 15.6.3-15.6.5).
    """
    if failure is None or failure.cause in _OURS:
        return 503
    if failure.cause is Cause.RATE_LIMITED:
        return 429
    if failure.cause is Cause.CONTEXT_LENGTH:
        return 400
    return 504 if failure.cause in _SILENT else 502
