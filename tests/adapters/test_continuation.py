"""How each kind of server is asked to go on with an answer, and what cannot be asked."""

import json
from typing import Any, get_args

import pytest

from gateway.adapters.continuation import UnreadableRequestError, continued, decoded, is_repeatable
from gateway.adapters.openai_compatible import Operation
from gateway.config.fields import KINDS

CHAT, COMPLETIONS = "chat/completions", "completions"
ASKED = [{"role": "user", "content": "tell"}]
BEGUN = {"role": "assistant", "content": "once "}
FINAL = {"continue_final_message": True, "add_generation_prompt": False}
BETA = "https://api.deepseek.com/beta/chat/completions"


def ask(
    request: dict[str, Any],
    *,
    operation: Operation = "chat/completions",
    kind: str = "vllm",
    spent: int = 3,
    url: str = "",
) -> dict[str, Any] | None:
    body = continued(request, operation, "upon", spent, kind=kind, url=url or f"http://box/v1/{operation}")
    if body is None:
        return None
    found: dict[str, Any] = json.loads(body)
    return found


def chat(**fields: object) -> dict[str, Any]:
    return {"model": "m", "messages": ASKED, **fields}


def completion(**fields: object) -> dict[str, Any]:
    return {"model": "m", "prompt": "once ", **fields}


def test_the_kinds_are_those_that_a_configuration_names() -> None:
    assert {"vllm", "sglang", "llamacpp", "deepseek"} <= set(KINDS)
    assert set(get_args(Operation)) == {CHAT, COMPLETIONS, "responses", "embeddings"}


@pytest.mark.parametrize(
    ("kind", "url", "fields", "marks"),
    [
        ("vllm", "", FINAL, {}),
        ("sglang", "", FINAL, {}),
        ("llamacpp", "", FINAL, {}),
        ("deepseek", BETA, {}, {"prefix": True}),
    ],
)
def test_a_chat_goes_on_from_the_last_message(
    kind: str, url: str, fields: dict[str, object], marks: dict[str, object]
) -> None:
    message = {"role": "assistant", "content": "upon", **marks}
    request = chat(temperature=0.5, n=None)
    assert ask(request, kind=kind, url=url) == {**request, **fields, "messages": [*ASKED, message]}
    assert request["messages"] == ASKED


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"vllm", "sglang", "llamacpp"}))
@pytest.mark.parametrize(
    "url", ["", "https://api.deepseek.com/v1/chat/completions", "https://beta/v1/chat/completions"]
)
def test_what_documents_nothing_of_the_sort_is_not_asked(kind: str, url: str) -> None:
    assert ask(chat(), kind=kind, url=url) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_on_from_a_prompt(kind: str) -> None:
    request = completion(stop=["\n"])
    assert ask(request, operation="completions", kind=kind) == {**request, "prompt": "once upon"}


@pytest.mark.parametrize(
    "fields",
    [
        {"suffix": "the end"},
        {"echo": True},
        {"prompt": ["once "]},
        {"prompt": [1, 2]},
        {"prompt": None},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_a_prompt_that_is_not_the_beginning_of_the_answer_is_not_gone_on_from(fields: dict[str, object]) -> None:
    assert ask(completion(**fields), operation="completions") is None
    assert ask({"model": "m"}, operation="completions") is None


@pytest.mark.parametrize("fields", [{"suffix": None, "echo": False}, {"suffix": ""}])
def test_what_is_off_does_not_matter(fields: dict[str, object]) -> None:
    assert ask(completion(**fields), operation="completions") == completion(**fields, prompt="once upon")


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_an_echo_is_no_part_of_an_answer(kind: str) -> None:
    """Servers that know it (vLLM) say the last message again, so that the text so far would be said again."""
    assert ask(chat(echo=True), kind=kind) is None
    assert ask(chat(echo=False), kind=kind) is not None


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"response_format": {"type": "regex"}},
        {"response_format": "json"},
        {"structured_outputs": {"regex": "a"}},
        {"structured_outputs": {"choice": ["a"]}},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "a*"},
        {"guided_choice": ["a"]},
        {"guided_grammar": "root"},
        {"grammar": "root ::= a"},
        {"json_schema": {"type": "object"}},
        {"regex": "a*"},
        {"ebnf": "root"},
        {"structural_tag": "{}"},
    ],
)
def test_a_form_is_not_held_against_half_an_answer(form: dict[str, object]) -> None:
    for kind in ("vllm", "sglang", "llamacpp"):
        assert ask(chat(**form), kind=kind) is None
    assert ask(completion(**form), operation="completions") is None


@pytest.mark.parametrize(
    "fields",
    [{"response_format": None}, {"response_format": {"type": "text"}}, {"guided_json": None}, {"grammar": ""}],
)
def test_plain_text_is_no_form(fields: dict[str, object]) -> None:
    assert ask(chat(**fields)) is not None


@pytest.mark.parametrize(
    ("kind", "url", "fields", "last", "joins"),
    [
        ("vllm", "", {}, BEGUN, False),
        ("sglang", "", {"continue_final_message": False}, BEGUN, False),
        ("vllm", "", {"continue_final_message": True}, BEGUN, True),
        ("sglang", "", {"continue_final_message": True, "add_generation_prompt": False}, BEGUN, True),
        ("llamacpp", "", {}, BEGUN, True),
        ("deepseek", BETA, {}, BEGUN, False),
        ("deepseek", BETA, {}, {**BEGUN, "prefix": True}, True),
        ("vllm", "", {"continue_final_message": True}, {**BEGUN, "role": "user"}, False),
        ("llamacpp", "", {}, {**BEGUN, "role": "tool"}, False),
    ],
)
def test_an_answer_that_the_client_began_is_not_begun_twice(
    kind: str, url: str, fields: dict[str, object], last: dict[str, object], *, joins: bool
) -> None:
    found = ask(chat(messages=[*ASKED, last], **fields), kind=kind, url=url)
    assert found is not None
    marks = {"prefix": True} if kind == "deepseek" else {}
    text = "once upon" if joins else "upon"
    before = ASKED if joins else [*ASKED, last]
    assert found["messages"] == [*before, {"role": "assistant", "content": text, **marks}]


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "once "}], 1])
def test_a_beginning_that_is_no_text_is_not_gone_on_from(content: object) -> None:
    messages = [*ASKED, {**BEGUN, "content": content}]
    assert ask(chat(messages=messages), kind="llamacpp") is None
    assert ask(chat(messages=[*ASKED, {"role": "assistant"}]), kind="llamacpp") is None
    assert ask(chat(messages=messages), kind="vllm") is not None


@pytest.mark.parametrize("messages", [None, "tell", {}, ["tell"], [*ASKED, "tell"], [None]])
def test_odd_messages_are_not_gone_on_from(messages: object) -> None:
    assert ask(chat(messages=messages)) is None
    assert ask({"model": "m"}) is None


def test_a_chat_without_messages_is_the_servers_to_judge() -> None:
    assert ask(chat(messages=[])) == {**chat(), **FINAL, "messages": [{"role": "assistant", "content": "upon"}]}


@pytest.mark.parametrize(
    ("limits", "less"),
    [
        ({"max_tokens": 10}, {"max_tokens": 7}),
        ({"max_completion_tokens": 10}, {"max_completion_tokens": 7}),
        ({"max_tokens": 10, "max_completion_tokens": 20}, {"max_tokens": 7, "max_completion_tokens": 17}),
        ({"max_tokens": 4}, {"max_tokens": 1}),
        ({"max_tokens": 3}, {"max_tokens": 1}),
        ({"max_tokens": 2}, {"max_tokens": 1}),
        ({"n_predict": 10}, {"n_predict": 7}),
        ({"max_tokens": -1, "n_predict": -1}, {"max_tokens": -1, "n_predict": -1}),  # used to end after 1 token
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"max_tokens": "10"}, {"max_tokens": "10"}),
        ({"min_tokens": 10}, {"min_tokens": 7}),
        ({"min_tokens": 3}, {"min_tokens": 0}),
        ({"min_tokens": 2, "max_tokens": 10}, {"min_tokens": 0, "max_tokens": 7}),
        ({"min_tokens": None}, {"min_tokens": None}),
        ({}, {}),
    ],
)
def test_limits_are_reduced_by_what_was_spent(limits: dict[str, object], less: dict[str, object]) -> None:
    found = ask(completion(**limits), operation="completions", spent=3)
    assert found == completion(**less, prompt="once upon")
    told = ask(chat(**limits), kind="llamacpp", spent=3)
    assert told == chat(**less, **FINAL, messages=[*ASKED, {"role": "assistant", "content": "upon"}])
    assert ask(chat(**limits), kind="llamacpp", spent=0) == {**told, **limits}


def test_text_is_given_as_it_is() -> None:
    body = continued(chat(), "chat/completions", 'é "😀"\n\\', 0, kind="vllm", url="http://box")
    assert body is not None
    assert json.loads(body)["messages"][-1]["content"] == 'é "😀"\n\\'


@pytest.mark.parametrize("fields", [{"x": {"y": [1.5, None]}}, {"seed": 10**30}, {"Model": "ü"}, {"": 0}])
def test_other_fields_stay(fields: dict[str, object]) -> None:
    found = ask(chat(**fields))
    assert found is not None
    assert fields.items() <= found.items()


@pytest.mark.parametrize(
    ("fields", "repeatable"),
    [
        ({}, True),
        ({"n": 1, "best_of": 1}, True),
        ({"n": None, "logprobs": None, "top_logprobs": None}, True),
        ({"logprobs": False}, True),
        ({"n": 2}, False),
        ({"n": "1"}, False),
        ({"best_of": 2}, False),
        ({"logprobs": True}, False),
        ({"logprobs": 5}, False),
        ({"logprobs": True, "top_logprobs": 0}, False),
        ({"top_logprobs": 3}, False),
        ({"prompt_logprobs": 1}, False),
    ],
)
def test_one_choice_without_log_probabilities_can_be_repeated(fields: dict[str, object], *, repeatable: bool) -> None:
    assert is_repeatable({"model": "m", **fields}) == repeatable


def test_log_probabilities_of_the_tokens_alone_are_asked_for_by_0() -> None:
    """0 alternatives in a completion: https://platform.openai.com/docs/api-reference/completions/create."""
    assert not is_repeatable(completion(logprobs=0))


@pytest.mark.parametrize(
    ("body", "request_"),
    [(b"{}", {}), (b' {"a": [1.5, null, "\\u00e9"]} ', {"a": [1.5, None, "é"]})],
)
def test_a_request_is_an_object(body: bytes, request_: dict[str, object]) -> None:
    assert decoded(body) == request_


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b"{}{}", b"\xff", b'{"a":"\xff"}', b'{"a":' + b"[" * 5000, b'{"a":1e999}']
)
def test_another_body_cannot_be_read(body: bytes) -> None:
    with pytest.raises(UnreadableRequestError):
        decoded(body)


@pytest.mark.parametrize("size", [1, 100_000])
def test_what_is_large_is_sent_as_it_is(size: int) -> None:
    """To build all of 32 MiB took four seconds, and nobody was served meanwhile."""
    said = {"role": "user", "content": "\u00e9" * size}
    for fields in (chat(messages=[said, *ASKED]), completion(prompt="\u00e9" * size), chat(x=[[], {"a": [said]}])):
        operation: Operation = "completions" if "prompt" in fields else "chat/completions"
        assert ask(decoded(json.dumps(fields).encode()), operation=operation) == ask(fields, operation=operation)
    assert ask(decoded(json.dumps(chat(messages=[said, BEGUN], prefix=1)).encode()), kind="llamacpp") == ask(
        chat(messages=[said, BEGUN], prefix=1), kind="llamacpp"
    )
    for messages in ([said, 1], said, [[said]], []):
        assert ask(decoded(json.dumps(chat(messages=messages)).encode())) == ask(chat(messages=messages))


def test_much_that_is_not_looked_at_is_passed_over() -> None:
    body = b'{"n":2,"x":[' + b"[]," * 10_000_000 + b"1]}"
    assert not is_repeatable(decoded(body))
