"""What a client asks `/v1/*`, rightly and wrongly."""

import json

import pytest

from tests.execution.support import CHAT, ask, chain, error_of, running
from tests.fakes.client import get, post
from tests.fakes.upstream import ScriptedUpstream, Send, json_answer, refused_url
from tests.running import Config, until

NOWHERE = {"m": chain(refused_url())}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\n"


HALF = "the body is not valid JSON: half of a surrogate pair at byte {}, as of an emoji that was cut in two"


def raw(body: bytes, fields: bytes = b"content-type: application/json\r\n") -> bytes:
    return HEAD + fields + b"content-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (b"", "the body is empty, expected a JSON object", None, "invalid_json"),
        (b'{"model": "m"', "the body is not valid JSON: it is cut short", None, "invalid_json"),
        (b'{"model" "secret"}', "the body is not valid JSON: unexpected at byte 9", None, "invalid_json"),
        (b'{"model": "m"} secret', "the body is not valid JSON: unexpected at byte 16", None, "invalid_json"),
        (b'{"model": "m", "x": NaN}', "the body is not valid JSON: unexpected at byte 20", None, "invalid_json"),
        *(
            (
                b'{"model": "m", "x": "%b"}' % text,
                HALF.format(place),
                None,
                "invalid_json",
            )
            for text, place in [
                (rb"\ud83d", 21),
                (rb"\ud83d and more of the text", 21),
                (rb"\uDE00", 21),
                (rb"\\\ud83d", 23),
                (rb"\\ud83d\uDE00", 28),
                (rb"\\ude00 \ud83d\ude00\ud83d\u0041", 41),
            ]
        ),
        (b'{"model": "m", "x": "\\ud83d\\ude00', "the body is not valid JSON: it is cut short", None, "invalid_json"),
        (b'{"model": m, "x": "\\ud83d"}', "the body is not valid JSON: unexpected at byte 10", None, "invalid_json"),
        (b'{"model" "m", "x": "\\ud83d"}', "the body is not valid JSON: unexpected at byte 9", None, "invalid_json"),
        (b'{"model": "m", "x": "\\\\ud83d", "y', "the body is not valid JSON: it is cut short", None, "invalid_json"),
        (b'{"model": "\xff\xfe"}', "the body is not valid JSON: it is not UTF-8", None, "invalid_json"),
        (b'{"a": ' + b"[" * 1_000_000, "the body is not valid JSON: it is nested too deeply", None, "invalid_json"),
        (b"[]", "the body is not a JSON object", None, "invalid_type"),
        (b'"secret"', "the body is not a JSON object", None, "invalid_type"),
        (b"null", "the body is not a JSON object", None, "invalid_type"),
        (b"{}", "model is missing", "model", "missing_field"),
        (b'{"Model": "m"}', "model is missing", "model", "missing_field"),
        (b'{"model": null}', "model: found null, expected a string", "model", "invalid_type"),
        (b'{"model": 5}', "model: found a number, expected a string", "model", "invalid_type"),
        (b'{"model": {"id": "m"}}', "model: found an object, expected a string", "model", "invalid_type"),
        (b'{"model": true}', "model: found true or false, expected a string", "model", "invalid_type"),
        (b'{"model": 5.5}', "model: found a number, expected a string", "model", "invalid_type"),
        (b'{"model": ["m"]}', "model: found an array, expected a string", "model", "invalid_type"),
        (
            b'{"model": "m", "stream": "yes"}',
            "stream: found a string, expected true or false",
            "stream",
            "invalid_type",
        ),
        (b'{"model": "m", "stream": 1}', "stream: found a number, expected true or false", "stream", "invalid_type"),
    ],
)
async def test_a_bad_body_is_told_what_is_wrong(
    config: Config, body: bytes, message: str, param: str | None, code: str
) -> None:
    async with running(config, NOWHERE) as gate:
        answer = await gate.say(raw(body))
        assert (answer.status, error_of(answer)) == (
            400,
            {"message": message, "type": "invalid_request_error", "param": param, "code": code},
        )
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.attempts) == (400, code, ())
        assert b"secret" not in answer.head.raw + answer.body


@pytest.mark.parametrize(
    ("fields", "status", "message", "param"),
    [
        (
            b"content-type: text/plain\r\n",
            400,
            "content-type: found 'text/plain', expected application/json",
            "content-type",
        ),
        (
            b"content-type: text/plain; x*\r\n",
            400,
            "content-type: found 'text/plain', expected application/json",
            "content-type",
        ),
        (
            b"content-type: json\r\n",
            400,
            "content-type: found 'application/octet-stream', expected application/json",
            "content-type",
        ),
        (
            b"content-type: multipart/form-data; boundary=x\r\n",
            400,
            "content-type: found 'multipart/form-data', expected application/json",
            "content-type",
        ),
        (
            b"content-type: application/x-www-form-urlencoded\r\n",
            400,
            "content-type: found 'application/x-www-form-urlencoded', expected application/json",
            "content-type",
        ),
        (b"content-encoding: gzip\r\n", 415, "content-encoding: expected none", "content-encoding"),
        (b"content-encoding: GZIP, br\r\n", 415, "content-encoding: expected none", "content-encoding"),
    ],
)
async def test_a_body_that_is_no_plain_json_is_refused(
    config: Config, fields: bytes, status: int, message: str, param: str
) -> None:
    async with running(config, NOWHERE) as gate:
        answer = await gate.say(raw(b'{"model":"m"}', fields))
        error = error_of(answer)
        assert (answer.status, error["message"], error["param"]) == (status, message, param)
        assert (await gate.outcome()).status == status


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"content-type: Application/JSON; charset=utf-8\r\n",
        b"content-type: application/json; charset=utf-8\r\n",
        b"content-type: application/json; x*\r\n",
        b"content-type: application/vnd.api+json\r\ncontent-encoding: identity\r\n",
    ],
)
async def test_json_has_several_names(config: Config, fields: bytes) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        assert (await gate.say(raw(b'{"model":"m","stream":null}', fields))).status == 200
        assert a.requests[0].values("content-type") == ["application/json"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lama-3", "the model 'lama-3' is not served here, did you mean 'llama-3'?"),
        ("x'\n\u202e", 'the model "x\'\\n\\u202e" is not served here'),
        ("", "the model '' is not served here"),
        ("y" * (8 << 20), f"the model '{'y' * 100}...' is not served here"),
    ],
)
async def test_an_unknown_model_is_told_the_nearest(config: Config, model: str, message: str) -> None:
    async with running(config, {"llama-3": chain(refused_url())}) as gate:
        answer = await gate.post({"model": model, "stream": True})
        assert (answer.status, error_of(answer)) == (
            404,
            {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"},
        )
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.generation) == (404, "model_not_found", 1)
        assert (outcome.stream, outcome.model, outcome.served_model) == (True, model, None)


@pytest.mark.parametrize(
    ("target", "status", "code", "allow"),
    [
        ("/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("/v1/chat/completions/", 404, "not_found", None),
        ("/v1", 404, "not_found", None),
        ("/chat/completions", 404, "not_found", None),
        ("/v1/audio/speech", 404, "not_found", None),
    ],
)
async def test_unknown_places_and_methods(
    config: Config, target: str, status: int, code: str, allow: str | None
) -> None:
    async with running(config, NOWHERE) as gate:
        answer = await gate.say(get(target))
        error = error_of(answer)
        assert (answer.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
        assert answer.head.get("allow") == allow
        assert (status == 404) is ("served at this path, expected /v1/chat/completions" in error["message"])
        posted = await gate.say(post("/v1/models", {}))
        assert (posted.status, posted.head.get("allow")) == (405, "GET, HEAD")
        assert error_of(posted)["message"] == "POST is not answered here, expected GET, HEAD"
        assert gate.outcomes == []


MODELS = """
models:
  - id: org/big
    name: The Big One
    aliases: [big]
    base_url: http://127.0.0.1:1
    context_length: 8192
    owned_by: org
    pricing: {prompt: "0.5"}
  - id: small
    base_url: http://127.0.0.1:1
"""


async def test_models_are_listed_with_their_metadata(config: Config) -> None:
    config.save("models.yaml", MODELS)
    async with running(config) as gate:
        answer = await gate.say(get("/v1/models"))
        listed = answer.json()
        big, small = listed["data"]
        assert (answer.status, listed["object"]) == (200, "list")
        assert big | {"created": 0} == {
            "id": "org/big",
            "object": "model",
            "created": 0,
            "owned_by": "org",
            "root": "org/big",
            "max_model_len": 8192,
            "name": "The Big One",
            "context_length": 8192,
            "pricing": {"prompt": "0.5"},
        }
        assert small | {"created": 0} == {
            "id": "small",
            "object": "model",
            "created": 0,
            "owned_by": "hybrid-inference-gateway",
            "root": "small",
        }
        assert (await gate.say(get("/v1/models"))).json() == listed
        for name in ("org/big", "org%2Fbig", "big"):
            answer = await gate.say(get(f"/v1/models/{name}"))
            assert (answer.status, answer.json()) == (200, big)
        config.save("models.yaml", MODELS.replace("8192", "4096"))
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.generation == 2)
        answer = await gate.say(get("/v1/models"))
        assert answer.json()["data"][0]["context_length"] == 4096
        assert answer.head.get("x-gateway-generation") == "2"


async def test_an_unknown_model_item_is_told_the_nearest(config: Config) -> None:
    config.save("models.yaml", MODELS)
    async with running(config) as gate:
        error = error_of(await gate.say(get("/v1/models/org/bigg")))
        assert error["message"] == "the model 'org/bigg' is not served here, did you mean 'org/big'?"
        assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_an_alias_is_served_as_its_model(config: Config) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a:
        config.save("models.yaml", MODELS.replace("http://127.0.0.1:1", a.url))
        async with running(config) as gate:
            assert (await gate.post("big")).status == 200
            assert a.requests[0].json()["model"] == "org/big"
            outcome = await gate.outcome()
            assert (outcome.model, outcome.served_model) == ("big", "org/big")


@pytest.mark.parametrize(
    ("offered", "kept"),
    [("Req-1.2_3:4/5+6=7@8", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False), ("é", False)],
)
async def test_a_sane_request_id_is_kept(config: Config, offered: str, *, kept: bool) -> None:
    async with ScriptedUpstream([Send(json_answer({}))]) as a, running(config, {"m": chain(a.url)}) as gate:
        answer = await gate.post("m", headers=[("x-request-id", offered)])
        given = answer.head.get("x-request-id")
        assert given
        assert (given == offered) is kept
        assert a.requests[0].values("x-request-id") == [given]
        assert (await gate.outcome()).request_id == given


async def test_every_answer_carries_its_id_and_generation(config: Config) -> None:
    async with running(config, NOWHERE) as gate:
        for request in (
            get("/health"),
            get("/health", [("expect", "the-unexpected")]),
            get("/nowhere"),
            get("/v1/models"),
            ask(),
            ask("unknown"),
            raw(b"{"),
            get(CHAT),
        ):
            head = (await gate.say(request)).head
            assert len(head.get("x-request-id") or "") == 32
            assert head.get("x-gateway-generation") == "1"
            assert head.values("server") == ["hybrid-inference-gateway"]


async def test_without_a_configuration_it_says_so(config: Config) -> None:
    config.save("models.yaml", "models: no\n")
    async with running(config) as gate:
        for request in (ask(), get("/v1/models"), get("/v1/models/m")):
            answer = await gate.say(request)
            assert (answer.status, error_of(answer)["code"]) == (503, "no_configuration")
            assert error_of(answer)["type"] == "service_unavailable_error"
            assert (answer.head.get("retry-after"), answer.head.get("x-gateway-generation")) == ("1", "0")
        outcome = await gate.outcome()
        assert (outcome.status, outcome.failure, outcome.model) == (503, "no_configuration", "m")


async def test_one_connection_serves_errors_and_answers(config: Config) -> None:
    async with (
        ScriptedUpstream([Send(json_answer({"ok": True}))]) as a,
        running(config, {"m": chain(a.url)}) as gate,
        gate.client() as client,
    ):
        for request, status in ((raw(b"{"), 400), (ask(), 200), (ask("no"), 404), (get("/health"), 200), (ask(), 200)):
            await client.send(request)
            answer = await client.read_answer()
            assert (answer.status, json.loads(answer.body) != {}) == (status, True)
        assert a.connections == 1
