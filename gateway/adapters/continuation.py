"""Going on with an answer that has begun: how a kind of server is asked to, and what can be asked of it.

A chat is continued by giving the text so far as the last message, the assistant's:

- vLLM and SGLang continue it where `continue_final_message` is set and `add_generation_prompt` is not
  (https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html; SGLang's sampling parameters).
- llama.cpp's server continues an assistant's message that comes last (`--prefill-assistant`, on by default). Where it
  knows the two fields it says that message once more if they are not set.
- DeepSeek does where that message has `prefix: true`, under the base URL with the path /beta
  (https://api-docs.deepseek.com/guides/chat_prefix_completion).

The other kinds document nothing of the sort, or leave it to the model (OpenRouter). A `/v1/completions` prompt is
continued by every server: the text so far is added to it.
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
    """A request's body that is not what its operation takes."""


def decoded(body: bytes) -> dict[str, Any]:
    """Decode a request's body, as far as it is to be looked at: what else is large stays as it is written.

    Raises:
        UnreadableRequestError: it is no JSON object.

    """
    try:
        return {name: _read(name, written) for name, written in _fields.decode(body).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnreadableRequestError from None


def _read(name: str, written: msgspec.Raw) -> object:
    """Read a field; of large messages the last one alone."""
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
    """Tell whether a broken answer to this request can be carried on at all: one choice, and no log-probabilities."""
    several = any(request.get(name) not in (None, 1) for name in ("n", "best_of"))
    asked = (request.get(name) for name in _PROBABILITIES)
    return not several and all(value is None or value is False for value in asked)  # 0 asks for the chosen token's


def continued(
    request: Mapping[str, Any], operation: Operation, text: str, spent: int, *, kind: str, url: str
) -> bytes | None:
    """Write the request whose answer goes on after `text`, which took `spent` tokens; None where it cannot be asked.

    It cannot where the answer has a form to keep, which half an answer would be held against from its middle.
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
    """Take what was spent off the limits; -1 is none (llama.cpp's `n_predict`, LM Studio's `max_tokens`)."""
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
    """Tell whether the client itself gave the beginning of the answer as the last message."""
    return kind == "llamacpp" or bool(request.get("continue_final_message") or last.get("prefix"))


def _asking(kind: str, url: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Give what a kind wants set in the request, None where it does not continue, and in the message."""
    match kind:
        case "vllm" | "sglang" | "llamacpp":
            return _FINAL, {}
        case "deepseek" if urlsplit(url).path.startswith("/beta/"):
            return {}, {"prefix": True}
    return None, {}
