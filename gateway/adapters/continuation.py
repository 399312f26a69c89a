"""Continuing an answer that has begun: how each kind of server is asked to, and for which requests it can be.

A chat is continued by sending the text so far as the last message, with the assistant's role:

- vLLM and SGLang continue it where `continue_final_message` is set and `add_generation_prompt` is not
  (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; SGLang's sampling parameters).
- llama.cpp's server continues an assistant message that comes last (`--prefill-assistant`, on by default). Versions
  that know the two fields repeat that message in the answer unless the fields are set.
- DeepSeek continues it where that message has `prefix: true`, at the base URL with the path /beta
  (https://api-docs.deepseek.com/guides/chat_prefix_completion).

The other kinds document nothing of the sort, or leave it to the model (OpenRouter). Every server continues a
`/v1/completions` prompt: the text so far is appended to it.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gateway.adapters.openai_compatible import Operation

_FINAL: Final = {"continue_final_message": True, "add_generation_prompt": False}
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
_FORMS: Final = ("structured_outputs", "grammar", "json_schema", "regex", "ebnf", "structural_tag")
_GUIDED: Final = "guided_"
_MESSAGES: Final = "messages"
_PROMPT: Final = "prompt"
_LARGE: Final = 1 << 16
_MESSAGE: Final = (dict, msgspec.Raw)
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages: Final = msgspec.json.Decoder(list[msgspec.Raw])
_PROBABILITIES: Final = ("logprobs", "top_logprobs", "prompt_logprobs")


class UnreadableRequestError(ValueError):
    """A request body that its operation does not accept."""


def decoded(body: bytes) -> dict[str, Any]:
    """Decode a request's body as far as it is needed: other large fields stay raw JSON.

    Raises:
        UnreadableRequestError: it is not a JSON object.

    """
    try:
        return {name: _read(name, written) for name, written in _fields.decode(body).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableRequestError from None


def _read(name: str, written: msgspec.Raw) -> object:
    """Decode a field; of large messages, only the last one."""
    if len(written) <= _LARGE or (name == _PROMPT and _first(written) == b'"'):
        return msgspec.json.decode(written)
    if name != _MESSAGES or _first(written) != b"[":
        return written
    each = _messages.decode(written)
    if not all(_first(message) == b"{" for message in each):
        return written
    return [*each[:-1], msgspec.json.decode(each[-1])]


def _first(written: msgspec.Raw) -> bytes:
    return memoryview(written)[:1].tobytes()


def is_repeatable(request: Mapping[str, Any]) -> bool:
    """Return whether a broken answer to this request can be rescued at all: one choice, and no log-probabilities."""
    several = any(request.get(name) not in (None, 1) for name in ("n", "best_of"))
    asked = (request.get(name) for name in _PROBABILITIES)
    return not several and all(value is None or value is False for value in asked)  # 0 asks for the chosen token's


def continued(
    request: Mapping[str, Any], operation: Operation, text: str, spent: int, *, kind: str, url: str
) -> bytes | None:
    """Return the request whose answer continues `text`, which took `spent` tokens; None where that is not possible.

    It is not where the answer must have a form (a schema or a grammar): a server would check the second half of the
    answer against the form from its start.
    """
    if _has_form(request) or request.get("echo"):
        return None
    more = _completion(request, text) if operation == "completions" else _chat(request, text, kind, url)
    return None if more is None else msgspec.json.encode({**request, **more, **_less(request, spent)})


def _has_form(request: Mapping[str, Any]) -> bool:
    plain = request.get("response_format") in (None, {"type": "text"})
    named = any(request.get(name) for name in _FORMS)
    return not plain or named or any(name.startswith(_GUIDED) and value for name, value in request.items())


def _less(request: Mapping[str, Any], spent: int) -> dict[str, int]:
    """Subtract the spent tokens from the limits; -1 is no limit (llama.cpp's `n_predict`, LM Studio's `max_tokens`)."""
    limits = {name: request.get(name) for name in _LIMITS}
    less = {name: max(1, limit - spent) for name, limit in limits.items() if isinstance(limit, int) and limit > 0}
    least = request.get("min_tokens")
    return less | ({"min_tokens": max(0, least - spent)} if isinstance(least, int) else {})


def _completion(request: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    prompt = request.get(_PROMPT)
    if not isinstance(prompt, str) or request.get("suffix"):
        return None
    return {"prompt": prompt + text}


def _chat(request: Mapping[str, Any], text: str, kind: str, url: str) -> dict[str, Any] | None:
    fields, marks = _asking(kind, url)
    messages = request.get(_MESSAGES)
    if fields is None or not isinstance(messages, list) or not all(isinstance(each, _MESSAGE) for each in messages):
        return None
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and _is_open(request, last, kind):
        if not isinstance(last.get("content"), str):
            return None
        messages, text = messages[:-1], last["content"] + text
    return {"messages": [*messages, {"role": "assistant", "content": text, **marks}], **fields}


def _is_open(request: Mapping[str, Any], last: Mapping[str, Any], kind: str) -> bool:
    """Return whether the client itself sent the beginning of the answer as the last message."""
    return kind == "llamacpp" or bool(request.get("continue_final_message") or last.get("prefix"))


def _asking(kind: str, url: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the fields that a kind needs in the request (None where it cannot continue) and in the message."""
    match kind:
        case "vllm" | "sglang" | "llamacpp":
            return _FINAL, {}
        case "deepseek" if urlsplit(url).path.startswith("/beta/"):
            return {}, {"prefix": True}
    return None, {}
