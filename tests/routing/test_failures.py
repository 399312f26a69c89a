"""The table of failures: what each answer means, and what follows from it."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.failures import (
    TABLE,
    Cause,
    Failure,
    Rule,
    Verdict,
    error_failure,
    most_telling,
    status_failure,
    status_for_client,
    verdict,
)
from gateway.routing.wordings import code_of, message_of, says_loading

PAGE = Path(__file__).parents[2] / "docs" / "failover.md"


def test_the_verdict_is_the_tables_unless_a_connection_was_stale() -> None:
    assert {cause: verdict(Failure(cause)) for cause in Cause} == {cause: rule.verdict for cause, rule in TABLE.items()}
    assert {verdict(Failure(cause, stale=True)) for cause in Cause} == {Verdict.RETRY_HERE}


def row(cause: Cause, rule: Rule) -> tuple[str, ...]:
    return (
        f"`{cause.value}`",
        rule.verdict.value,
        "yes" if rule.passes else "no",
        "yes" if rule.blames else "no",
        f"{rule.out:g} s" if rule.out else "",
    )


def test_the_docs_print_the_table() -> None:
    """The second column says in words when it happens; the others are compared."""
    lines = re.findall(
        r"^\| (`\w+`) \| .+? \| (.*?) \| (.*?) \| (.*?) \|(.*?)\|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert [tuple(cell.strip() for cell in line) for line in lines] == [row(*entry) for entry in TABLE.items()]


def cause_of(status: int, body: bytes, model: str = "") -> Cause | None:
    failure = status_failure(status, body, model=model)
    return failure.cause if failure else None


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (301, Cause.REDIRECTED),
        (307, Cause.REDIRECTED),
        (399, Cause.REDIRECTED),
        (401, Cause.KEY_REFUSED),
        (402, Cause.KEY_REFUSED),
        (403, Cause.KEY_REFUSED),
        (404, Cause.NOT_SERVED),
        (405, Cause.NOT_SERVED),
        (407, Cause.NOT_SERVED),
        (421, Cause.NOT_SERVED),
        (426, Cause.NOT_SERVED),
        (408, Cause.SEND_AGAIN),
        (425, Cause.SEND_AGAIN),
        (429, Cause.RATE_LIMITED),
        (500, Cause.SERVER_ERROR),
        (501, Cause.NOT_SERVED),
        (502, Cause.SERVER_ERROR),
        (503, Cause.SERVER_ERROR),
        (504, Cause.GATEWAY_TIMEOUT),
        (524, Cause.GATEWAY_TIMEOUT),
        (520, Cause.SERVER_ERROR),
        (529, Cause.SERVER_ERROR),
        (599, Cause.SERVER_ERROR),
    ],
)
def test_what_a_status_means(status: int, cause: Cause) -> None:
    failure = status_failure(status, b'{"error": {"message": "something"}}', 2.5)
    assert failure is not None
    assert (failure.cause, failure.status, failure.retry_after) == (cause, status, 2.5)
    assert failure.detail.startswith(f"status {status}")


@pytest.mark.parametrize("status", [200, 204, 400, 406, 409, 410, 411, 413, 415, 418, 422, 431, 451, 499])
def test_every_other_status_is_the_clients_answer(status: int) -> None:
    assert status_failure(status, b'{"error": {"message": "no"}}') is None


CONTEXT_LENGTH = {
    "openai": (400, "This model's maximum context length is 8192 tokens.", "context_length_exceeded"),
    "openai, by its code": (400, "Too much.", "context_length_exceeded"),
    "vllm": (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens", 400),
    "vllm, the prompt": (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 400),
    "sglang": (400, "The input (9001 tokens) is longer than the model's context length (8192 tokens).", 400),
    "sglang, of its memory": (400, "Input length (9 tokens) exceeds the maximum allowed length (8 tokens). Use a", 400),
    "llama.cpp": (400, "the request exceeds the available context size, try increasing it", 400),
    "llama.cpp, by its type": (400, "too much", "exceed_context_size_error"),
    "llama.cpp, embeddings": (500, "input is too large to process. increase the physical batch size", 500),
    "llama.cpp, embeddings, today": (500, "input (1202 tokens) is too large to process. increase the ...", 500),
    "ollama": (400, "the input length exceeds the context length", None),
    "lm studio": (400, "tokens to keep is greater than the context length (4096)", None),
    "anthropic": (400, "prompt is too long: 208310 tokens > 200000 maximum", None),
    "anthropic, both": (400, "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000", None),
    "gemini": (400, "The input token count (9) exceeds the maximum number of tokens allowed (8).", 400),
    "openrouter": (400, "This endpoint's maximum context length is 32768 tokens.", 400),
    "openrouter, the provider": (400, "Input length 9 exceeds the maximum allowed input length of 8 tokens.", 400),
    "together": (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8. Given: 9", None),
    "xai": (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens.", None),
    "unprocessable": (422, "Context length exceeded", None),
    "too large": (413, "CONTEXT WINDOW", None),
}


def error(message: str, code: str | int | None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


@pytest.mark.parametrize(("status", "message", "code"), CONTEXT_LENGTH.values(), ids=CONTEXT_LENGTH)
def test_a_prompt_that_does_not_fit_is_recognised(status: int, message: str, code: str | int | None) -> None:
    assert cause_of(status, error(message, code)) is Cause.CONTEXT_LENGTH
    assert error_failure(error(message, code)).cause is Cause.CONTEXT_LENGTH
    other = status_failure(502, error(message, code))
    assert other is not None
    assert other.cause is Cause.SERVER_ERROR


POLICY = {
    "openai": (400, "rejected by our safety system", "content_policy_violation"),
    "azure": (400, "triggering Azure OpenAI's content management policy. The context length ...", "content_filter"),
    "openrouter": (403, 'X requires moderation on Y. Your input was flagged for "Z"', 403),
    "anthropic": (400, "Output blocked by content filtering policy", None),
    "xai": (403, "Content violates usage guidelines. Team: t, Failed check: SAFETY_CHECK_TYPE_BIO", None),
    "a 402 that is not about money": (402, "", "content_filter"),
}


@pytest.mark.parametrize(("status", "message", "code"), POLICY.values(), ids=POLICY)
def test_a_rejection_of_what_was_asked_is_the_clients_answer(status: int, message: str, code: str | int | None) -> None:
    assert status_failure(status, error(message, code)) is None


def test_a_credit_that_is_spent_is_no_rate() -> None:
    spent = b'{"error": {"message": "You exceeded your current quota.", "type": "%b", "code": %b}}'
    assert cause_of(429, spent % (b"insufficient_quota", b"null")) is Cause.KEY_REFUSED
    assert cause_of(429, spent % (b"x", b'"insufficient_quota"')) is Cause.KEY_REFUSED
    assert cause_of(429, spent % (b"tokens", b'"rate_limit_exceeded"')) is Cause.RATE_LIMITED
    assert cause_of(429, error('it says "code": "insufficient_quota"', 429)) is Cause.RATE_LIMITED
    flagged = spent.replace(b"exceeded", b"flagged") % (b"insufficient_quota", b"null")
    assert cause_of(429, flagged) is Cause.KEY_REFUSED
    back_in_a_moment = status_failure(429, flagged, 30.0)
    assert back_in_a_moment is not None
    assert back_in_a_moment.cause is Cause.RATE_LIMITED


@pytest.mark.parametrize("words", ["Your account has been flagged", "No endpoints found"])
def test_a_401_is_about_the_key_whatever_it_says(words: str) -> None:
    assert cause_of(401, error(words, 401)) is Cause.KEY_REFUSED


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
        b'{"error":"Model meta-llama/Llama-3 is currently loading","estimated_time":20.0}',
        b"Server is starting",
        b'{"detail":"The model is not ready yet"}',
    ],
)
def test_a_box_that_loads_is_recognised(body: bytes) -> None:
    assert says_loading(body)
    failure = status_failure(503, body, 4.0)
    assert failure is not None
    assert (failure.cause, failure.retry_after) == (Cause.LOADING, 4.0)
    assert cause_of(500, body) is Cause.SERVER_ERROR


@pytest.mark.parametrize(
    "error",
    [
        "The model has crashed without additional information. (Exit code: null)",
        "Model unloaded by user or API request.",
        "Model is unloaded.",
        "No models loaded. Please load a model in the developer page or use the 'lms load' command.",
        {"message": 'Failed to load model "m". Error: Error loading model.', "type": "invalid_request_error"},
    ],
)
def test_a_model_that_is_gone_is_the_boxs_fault(error: object) -> None:
    """As LM Studio says it, with status 400."""
    failure = status_failure(400, json.dumps({"error": error}).encode())
    assert failure is not None
    assert (failure.cause, failure.status) == (Cause.SERVER_ERROR, 400)


def test_a_refusal_that_quotes_such_words_is_the_clients() -> None:
    message = "[{'type': 'missing', 'loc': ('body', 'messages'), 'input': {'prompt': 'Failed to load model'}}]"
    assert status_failure(400, error(message, 400)) is None


def test_a_provider_that_is_overloaded_is_none_that_loads() -> None:
    body = b'{"error":{"message":"The server is overloaded or not ready yet.","type":"server_error"}}'
    assert (cause_of(503, body), says_loading(body)) == (Cause.SERVER_ERROR, False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}',
        b'{"error":{"message":"model \\"x\\" not found, try pulling it first"}}',
        b'{"error":{"code":"model_not_found"}}',
    ],
)
def test_a_404_that_speaks_of_the_model_is_told_from_one_that_does_not(body: bytes) -> None:
    missing, elsewhere = cause_of(404, body), cause_of(404, b'{"detail":"Not Found"}')
    assert (missing, elsewhere) == (Cause.MODEL_MISSING, Cause.NOT_SERVED)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "Model Not Exist", "type": "invalid_request_error", "param": None, "code": "invalid_request_error"},
        {"message": "deepseek/deepseek-coder is not a valid model ID", "code": 400},
        {"code": 400, "message": "model 'gamma' not found", "type": "invalid_request_error"},
        {"code": 400, "message": "model not found", "type": "invalid_request_error"},
        {"message": 'Invalid model identifier "gamma". Please specify a valid downloaded model (e.g. delta).'},
        {"message": "/chat/completions: Invalid model name passed in model=gamma. Call `/v1/models` to view ..."},
        "could not find real modelID for gamma",
        {"message": "invalid model ID", "type": "invalid_request_error", "param": None, "code": None},
        {"message": "Invalid model 'gamma'. Permitted models can be found ...", "type": "invalid_model", "code": 400},
        {"code": "unknown_model", "message": "Unknown model: gamma", "details": "Unknown model: gamma"},
        {"message": "The model `gamma` has been decommissioned and is no longer supported. ..."},
    ],
)
def test_a_400_may_say_that_there_is_no_such_model(error: object) -> None:
    assert cause_of(400, json.dumps({"error": error}).encode(), model="DeepSeek/deepseek-coder") is Cause.MODEL_MISSING


@pytest.mark.parametrize(
    "body",
    [
        b'{"object":"error","message":"Invalid model: gamma","type":"invalid_model"}',
        b'{"message":"The provided model identifier is invalid."}',
    ],
)
def test_a_400_may_say_so_beside_no_error(body: bytes) -> None:
    """As Mistral's and Bedrock's do."""
    assert cause_of(400, body) is Cause.MODEL_MISSING


@pytest.mark.parametrize(
    "message",
    [
        "tools: model 'gamma' not found",
        "a b is not a valid model ID",
        "nobody/nothing is not a valid model ID",
        "function not found",
        "The model's name: Model Not Exist",
        "Invalid modelling: { id",
        "The model said that it has been decommissioned",
    ],
)
def test_another_400_that_speaks_of_a_model_is_the_clients(message: str) -> None:
    assert status_failure(400, json.dumps({"error": {"message": message}}).encode()) is None


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "This is a chat model and not supported in the v1/completions endpoint."),
        (404, "This is not a chat model and thus not supported in the v1/chat/completions endpoint."),
        (404, "This model is only supported in v1/responses and not in v1/chat/completions."),
        (
            404,
            "models/gamma is not found for API version v1main, or is not supported for embedContent. Call ListModels",
        ),
        (403, "You are not allowed to generate embeddings from this model"),
        (403, "You do not have permission to access the File 1x2y or it may not exist."),
        (403, "CachedContent not found (or permission denied)"),
        (404, "The model does not support Embeddings API"),
        (404, "No endpoints found matching your data policy (Paid model training)"),
        (404, "No allowed providers are available for the selected model."),
        (402, "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens"),
    ],
)
def test_what_a_model_cannot_do_is_told_from_a_model_or_a_key_that_is_none(status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "param": "model", "code": None}}).encode()
    assert cause_of(status, body) is Cause.NOT_SERVED


def test_a_403_that_is_a_page_is_a_firewalls() -> None:
    """It may have been put up for what a client wrote: Cloudflare's names "a certain word or phrase, a SQL command"."""
    page = b"\n<!DOCTYPE html><title>Attention Required! | Cloudflare</title><h1>Sorry, you have been blocked</h1>"
    assert [cause_of(status, page) for status in (401, 402, 403)] == [
        Cause.KEY_REFUSED,
        Cause.KEY_REFUSED,
        Cause.NOT_SERVED,
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'[{\n  "error": {\n    "code": 400,\n    "message": "API key not valid. Please pass ..."\n  }\n}]',
        b'[{"error":{"code":400,"message":"API key expired. Please renew the API key.","status":"INVALID_ARGUMENT"}}]',
        b'[{"error":{"code":400,"message":"Missing or invalid Authorization header.","status":"INVALID_ARGUMENT"}}]',
        b'{"code":"Client specified an invalid argument","error":"Incorrect API key provided: na***ys."}',
        b'{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to ..."}}',
        b'{"type":"error","error":{"message":"You have reached your specified API usage limits. You will ..."}}',
        b'[{"error":{"code":400,"message":"User location is not supported for the API use."}}]',
        b'{"error":{"message":"Budget has been exceeded! Current cost: 1.2, Max budget: 1.0","code":"400"}}',
        b'{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}',
        b'{"error":{"message":"Budget has been exceeded! Team=t Current cost: 3000.1, Max budget: 3000.0"}}',
    ],
)
def test_a_400_may_be_about_the_key(body: bytes) -> None:
    """As Gemini, xAI, Anthropic and LiteLLM say it."""
    assert cause_of(400, body) is Cause.KEY_REFUSED


@pytest.mark.parametrize(
    "message", ["tools[0]: API key not valid", "ExceededBudget: End User=eve over budget. Spend=2, Budget=1"]
)
def test_a_400_about_what_the_client_wrote_is_not(message: str) -> None:
    assert status_failure(400, error(message, 400)) is None


UNFIT = {
    "image": "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    "audio": "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    "tools": "tools param requires --jinja flag",
    "tool choice": "tool_choice param requires --jinja flag",
    "messages": "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number",
    "a tool": 'Failed to parse tools: Missing tool function: {"type":"function"}; tools = []',
    "a file": "Failed to load image or audio file",
    "prefill": "Assistant response prefill is incompatible with enable_thinking.",
    "param": "Unsupported param: best_of",
    "reasoning": "Unknown reasoning format: zz",
    "forms": "Cannot use both json_schema and grammar",
    "echo": "Only no echo is supported",
    "n": "Only one completion choice is allowed",
    "assistants": "Cannot have 2 or more assistant messages at the end of the list.",
    "a url": "Invalid url value",
    "a url's format": "Invalid image_url.url format: data:text/plain;base64",
    "a url's encoding": "url must be base64 encoded",
    "a video": "Failed to download video",
    "a part": "unsupported content[].type",
    "a sound": "input_audio.format must be either 'wav' or 'mp3'",
    "a tool's choice": "Invalid tool_choice: sometimes",
    "a grammar": "Cannot use custom grammar constraints with tools.",
    "a form": 'response_format type must be one of "text" or "json_object", but got: xml',
    "a switch": 'invalid type for "enable_thinking" (expected boolean, got string)',
    "no messages": "'messages' is required",
    "messages of a kind": "Expected 'messages' to be an array",
    "content of a kind": "Expected 'content' to be a string or an array",
    "no content": "All non-assistant messages must contain 'content'",
    "nothing said": "Assistant message must contain either 'content' or 'tool_calls'!",
    "no prompt": '"prompt" is required',
    "probabilities": "logprobs is not supported with tools + stream",
    "more probabilities": "top_logprobs requires logprobs to be set to true",
    "minja": "Conversation roles must alternate user/assistant/... at row 1, column 313:\n{{ bos_token }}",
    "jinja": "\n------------\nWhile executing CallExpression at line 1, column 9 in source:\nJinja Exception: no",
    "vLLM's image": "404, message='Not Found', url='https://example.com/cat.png'",
    "SGLang's data": "Internal server error: "
    "An exception occurred while loading multimodal data: Error while loading data cat: ...",
    "SGLang's image": "Internal server error: "
    "An exception occurred while loading IMAGE data at index 0: Error while loading data x",
}


@pytest.mark.parametrize("message", UNFIT.values(), ids=UNFIT)
def test_what_a_box_cannot_take_is_not_its_fault(message: str) -> None:
    assert cause_of(500, error(message, 500)) is Cause.NOT_SERVED


@pytest.mark.parametrize(
    "message",
    [
        "Compute error.",
        "Internal server error: An exception occurred while loading multimodal data: CUDA out of memory",
        "503, message='Service Unavailable', url='http://gpu-1:8000'",
        "got exception: Failed to parse messages",
        "it crashed at row 1",
        'a "quoted" text at row 1, column 2:\n',
        "Failed to parse input at pos 8: <tool_call> of the context window",
        "Failed to parse input at pos 8: <tool_call> at row 1, column 2:\n",
        "cannot go on after: meet me at row 1, column 2: there",
    ],
)
def test_another_500_is_the_boxs_fault(message: str) -> None:
    assert cause_of(500, error(message, 500)) is Cause.SERVER_ERROR


def test_an_error_under_a_good_status() -> None:
    failure = error_failure(b'{"error":{"message":"Provider returned error","code":502}}')
    assert failure == Failure(Cause.ERROR_ANSWER, "an error object in place of an answer")
    assert error_failure(b'{"error":{"code":"content_filter","message":"context length"}}').cause is Cause.ERROR_ANSWER


def test_what_a_model_wrote_is_no_word_of_its_boxs() -> None:
    """As llama.cpp quotes it."""
    told = error("Failed to parse input at pos 8: <tool_call> of the context window", 500)
    assert error_failure(told).cause is Cause.ERROR_ANSWER


@pytest.mark.parametrize("code", [400, "400", 413, 422, 499])
def test_an_error_under_a_good_status_may_be_about_the_request(code: str | int) -> None:
    failure = error_failure(error("top_p must be in (0, 1], got 0.0.", code))
    assert (failure.cause, failure.status) == (Cause.NOT_SERVED, int(code))


@pytest.mark.parametrize("code", [401, 404, 408, 429, 500, 200, 0, -400, 4000, "4000", "40x", "", 400.5, None])
def test_an_error_under_a_good_status_is_the_boxs_fault_otherwise(code: str | float | None) -> None:
    assert error_failure(json.dumps({"error": {"code": code}}).encode()).cause is Cause.ERROR_ANSWER


def test_a_model_that_is_gone_is_the_boxs_fault_under_a_good_status_too() -> None:
    assert error_failure(error("Model unloaded by user or API request.", 400)).cause is Cause.ERROR_ANSWER


def test_nobodys_prompt_is_in_a_detail() -> None:
    for status in range(300, 600):
        failure = status_failure(status, b"canary context length model loading")
        assert failure is None or "canary" not in failure.detail
    assert "canary" not in error_failure(b"canary").detail


FAILURES = st.lists(st.sampled_from(Cause).map(Failure), min_size=1, max_size=6)


@given(FAILURES)
def test_the_most_telling_failure_wins(failures: list[Failure]) -> None:
    chosen = most_telling(failures)
    causes = [failure.cause for failure in failures]
    order = [Cause.CONTEXT_LENGTH, Cause.LOCAL_FAULT, Cause.TOTAL_TIMEOUT, Cause.RATE_LIMITED]
    expected = next((cause for cause in order if cause in causes), causes[0])
    assert chosen is failures[causes.index(expected)]


def test_without_failures_there_is_nothing_to_tell() -> None:
    assert most_telling(()) is None


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (None, 503),
        (Cause.LOCAL_FAULT, 503),
        (Cause.LOADING, 503),
        (Cause.RATE_LIMITED, 429),
        (Cause.CONTEXT_LENGTH, 400),
        (Cause.CONNECT_TIMEOUT, 504),
        (Cause.FIRST_TOKEN_TIMEOUT, 504),
        (Cause.TOTAL_TIMEOUT, 504),
        (Cause.STALLED, 504),
        (Cause.GATEWAY_TIMEOUT, 504),
        (Cause.CONNECT_REFUSED, 502),
        (Cause.SERVER_ERROR, 502),
        (Cause.KEY_REFUSED, 502),
    ],
)
def test_what_status_a_client_gets(cause: Cause | None, status: int) -> None:
    assert status_for_client(Failure(cause) if cause else None) == status


@pytest.mark.parametrize(
    ("status", "message", "cause"),
    [
        (503, "Model is loading", Cause.LOADING),
        (503, "API key expired", Cause.SERVER_ERROR),
        (413, "too large", None),
        (422, "API key expired", None),
        (503, "image input is not supported", Cause.SERVER_ERROR),
        (400, "image input is not supported", None),
    ],
)
def test_words_count_with_their_status_alone(status: int, message: str, cause: Cause | None) -> None:
    assert cause_of(status, json.dumps({"error": {"message": message}}).encode()) is cause


@pytest.mark.parametrize("status", [400, 406, 413, 414, 431, 499])
def test_a_page_is_of_what_stands_before_one_box(status: int) -> None:
    """It was taken for the client's answer."""
    page = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>"
    assert cause_of(status, page) is Cause.NOT_SERVED
    assert cause_of(status, b"the body is too large") is None


def test_what_was_said_is_in_no_repr() -> None:
    """It may quote the prompt."""
    failure = Failure(Cause.SERVER_ERROR, "status 500", 500, said="the prompt")
    assert (repr(failure), repr(Failure(Cause.DNS))) == ("<server_error: status 500>", "<dns>")


def test_lm_studio_answers_a_path_that_it_does_not_know_with_200() -> None:
    failure = error_failure(b'{"error":"Unexpected endpoint or method. (POST /v1/responses)"}')
    assert (failure.cause, failure.status) == (Cause.NOT_SERVED, 404)
    assert error_failure(b'{"error":"Expected: Unexpected endpoint or method"}').cause is Cause.ERROR_ANSWER


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'[{"error":{"code":503,"message":"The model is overloaded."}}]', 503, "The model is overloaded."),
        (b' [ {"error":{"code":"503","message":"a"}} ]\n', 503, "a"),
        (b'[{"error":{"code":400,"message":"a","status":"x","type":"billing_error"}}]', 400, ""),
        (b'[{"error":{"code":503,"message":"a"}},{"error":{"message":"b"}}]', 0, ""),
        (b"[]", 0, ""),
        (b'[{"error":{"code":503,"message":"a"}}', 0, ""),
    ],
)
def test_gemini_puts_an_error_into_a_list(body: bytes, code: int, message: str) -> None:
    assert (code_of(body), message_of(body)) == (code, message)
