"""Every field of both files: what it takes and what it refuses, in the words of a fault."""

from types import MappingProxyType

import pytest
from pydantic import SecretStr, ValidationError

from gateway.config.documents import (
    BreakerEntry,
    HealthCheck,
    Logging,
    Retries,
    RouteEntry,
    RoutingDocument,
    SplitEntry,
    Timeouts,
)
from gateway.config.fields import KINDS, Unset
from tests.config.loading import faults, load, models, split


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("id2: x", "unknown key 'id2', did you mean 'id'?"),
        ("zzz: x", "unknown key 'zzz', expected one of id, name, aliases, provider, base_url"),
        ("kind: vllm", "unknown key 'kind', did you mean 'provider'?"),
        ("api_base: http://b", "unknown key 'api_base', did you mean 'base_url'?"),
        ("max_model_len: 8192", "unknown key 'max_model_len', did you mean 'context_length'?"),
        ("route: [{provider: vllm}]", "unknown key 'provider', did you mean 'kind'?"),
        ("route: [{id: llama}]", "unknown key 'id', did you mean 'provider_model_id'?"),
        ("name: 3", "found 3, expected text: quote it"),
        ("name: ''", "found '', expected printable text without leading or trailing spaces"),
        ("name: ' x'", "found ' x', expected printable text without leading or trailing spaces"),
        ('name: "a\\nb"', "found 'a\\nb', expected printable text"),
        ("name: [x]", "found a list, expected text"),
        ("name: {}", "found an empty mapping, expected text"),
        ("aliases: x", "found 'x', expected a list"),
        ("aliases: [true]", "found true, expected text: quote it"),
        ("aliases: [~]", "found nothing, expected text"),
        ("provider: vlm", "found 'vlm', expected one of openai, openai_compatible, vllm, sglang, llamacpp, ollama,"),
        ("provider: vlm", "did you mean 'vllm'?"),
        ("provider: zzz", "deepseek, gemini, openrouter"),
        ("provider: 3", "found 3, expected one of openai"),
        ("provider:", "found nothing, expected one of openai"),
        ("api_key: 3", "found a hidden value, expected a key as text: quote it"),
        ("api_key: a b", "found a key with a space, a control or a non-ASCII character"),
        ("api_key: {a: b}", "found a mapping, expected a key as text"),
        ("route: []", "found an empty list, expected a list of at least 1"),
        ("route: x", "found 'x', expected a list"),
        ("route: [x]", "found 'x', expected a mapping"),
        ("route: [{weight: -1}]", "models[0].route[0].weight: found -1, expected a number of at least 0"),
        ("route: [{weight: 1e300}]", "found 1e+300, expected a number of at most 1000000000"),
        ("route: [{weight: '2'}]", "found '2', expected a number: leave out the quotes"),
        ("route: [{weight: x}]", "found 'x', expected a number"),
        ("route: [{weight: true}]", "found true, expected a number"),
        ("route: [{weight: ~}]", "found nothing, expected a number"),
        ("route: [{wieght: 2}]", "models[0].route[0].wieght: unknown key 'wieght', did you mean 'weight'?"),
        ("route: [{health_path: health}]", "found 'health', expected a path such as /health"),
        ("route: [{health_path: '/a b'}]", "found '/a b', expected a path such as /health"),
        ("timeouts: {first_token: x}", "models[0].timeouts.first_token: found 'x', expected a number"),
        ("timeouts: {conect: 1}", "models[0].timeouts.conect: unknown key 'conect', did you mean 'connect'?"),
        ("fallbacks: other", "models[0].fallbacks: found 'other', expected a list"),
        ("fallbacks: [3]", "models[0].fallbacks[0]: found 3, expected text: quote it"),
        ("rescue: never", "models[0].rescue: found 'never', expected one of off, replay, on"),
        ("rescue: replays", "expected one of off, replay, on, did you mean 'replay'?"),
        ("rescue: true", "models[0].rescue: found true, expected one of off, replay, on"),
        ("rescue: false", "models[0].rescue: found false, expected one of off, replay, on"),
        ("rescue:", "models[0].rescue: found nothing, expected one of off, replay, on"),
        ("rescue: no", "models[0].rescue: found no, which YAML 1.1 reads as true or false"),
        ("rescue: OFF", "models[0].rescue: found OFF, which YAML 1.1 reads as true or false"),
        ("supports_tools: on", "found on, which YAML 1.1 reads as true or false"),
        ("context_length: 0", "found 0, expected a number of at least 1"),
        ("context_length: 1.5", "found 1.5, expected a whole number"),
        ("context_length: '4096'", "found '4096', expected a whole number: leave out the quotes"),
        ("supports_tools: 'true'", "found 'true', expected true or false: leave out the quotes"),
        ("supports_tools: 1", "found 1, expected true or false"),
        ("supports_tools: yes", "found yes, which YAML 1.1 reads as true or false"),
        ("supported_params: {a: b}", "found a mapping, expected a list"),
        ("pricing: 3", "found 3, expected a mapping"),
        ('description: "\\x07"', "found '\\x07', expected printable text"),
    ],
)
def test_a_models_field_refuses(field: str, message: str) -> None:
    (fault,) = faults(models(field))
    assert fault.startswith("config/models.yaml:4:")
    assert message in fault


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("routing_strategy: 3", "found 3, expected text: quote it"),
        ("routing_parameter: 3", "found 3, expected a mapping"),
        (
            "routing_parameter: {rescue: on}",
            "routing_parameter.rescue: found on, which YAML 1.1 reads as true or false",
        ),
        ("timeout: 0", "found 0, expected a number above 0"),
        ("timeout: -0.5", "found -0.5, expected a number above 0"),
        ("timeout: 100000", "found 100000, expected a number of at most 86400"),
        ("timeout: .inf", "found .inf, expected a finite number"),
        ("timeout: 2s", "found '2s', expected a number"),
        ("health_check: -1", "health_check: found -1, expected a number of at least 0"),
        ("health_check: '30'", "health_check: found '30', expected a number: leave out the quotes"),
        ("health_check: [30]", "health_check: found a list, expected a mapping"),
        ("health_check: {intervall: 3}", "unknown key 'intervall', did you mean 'interval'?"),
        (
            "health_check: {unhealthy_after: 0}",
            "health_check.unhealthy_after: found 0, expected a number of at least 1",
        ),
        ("health_check: {path: x}", "health_check.path: found 'x', expected a path such as /health"),
        ("timeouts: 3", "timeouts: found 3, expected a mapping"),
        ("timeouts: {connect: 0}", "timeouts.connect: found 0, expected a number above 0"),
        ("timeouts: {first_token: -1}", "timeouts.first_token: found -1, expected a number of at least 0"),
        (
            "timeouts: {first_token: 1e9}",
            "timeouts.first_token: found 1000000000.0, expected a number of at most 86400",
        ),
        ("timeouts: {idle: 60s}", "timeouts.idle: found '60s', expected a number"),
        ("timeouts: {first_tokn: 1}", "timeouts.first_tokn: unknown key 'first_tokn', did you mean 'first_token'?"),
        ("retries: {attempts: 0}", "retries.attempts: found 0, expected a number of at least 1"),
        ("retries: {attempts: 101}", "retries.attempts: found 101, expected a number of at most 100"),
        ("retries: {ratio: 1.5}", "retries.ratio: found 1.5, expected a number of at most 1"),
        ("retries: {ratio: -0.1}", "retries.ratio: found -0.1, expected a number of at least 0"),
        ("retries: {retry_after_max: -1}", "retries.retry_after_max: found -1, expected a number of at least 0"),
        ("breaker: {failures: 0}", "breaker.failures: found 0, expected a number of at least 1"),
        ("breaker: {failures: 1001}", "breaker.failures: found 1001, expected a number of at most 1000"),
        ("breaker: {hold: 0}", "breaker.hold: found 0, expected a number above 0"),
        ("breaker: {longest_hold: 0}", "breaker.longest_hold: found 0, expected a number above 0"),
        ("breaker: off", "breaker: found off, which YAML 1.1 reads as true or false"),
        ("logging: output.log", "found 'output.log', expected a mapping"),
        ("logging: {output: 3}", "logging.output: found 3, expected text: quote it"),
        (
            "logging: {level: warn}",
            "found 'warn', expected one of debug, info, warning, error, did you mean 'warning'?",
        ),
        ("remote_deployment: {a: b}", "found a mapping, expected a list"),
        ("remote_deployment: [x]", "remote_deployment[0]: found 'x', expected a mapping"),
        (
            "remote_deployment: [{endpoint: 'http://b', models: [llama], base_url: 'http://b'}]",
            "unknown key 'base_url', did you mean 'endpoint'?",
        ),
    ],
)
def test_a_routing_field_refuses(field: str, message: str) -> None:
    (fault,) = faults(routing=f"local_deployment: []\n{field}\n")
    assert fault.startswith("config/routing.yaml:2:")
    assert message in fault


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("box:8000", "found 'box:8000', expected a URL that starts with http:// or https://"),
        ("ftp://box", "expected a URL that starts with http:// or https://"),
        ("box", "expected a URL that starts with http:// or https://"),
        ("http://", "expected a URL with a host"),
        ("http://:8000", "expected a URL with a host"),
        ("http:/box", "expected a URL with a host"),
        ("http://$HOST", "expected a URL with a host, such as http://localhost:8000: a variable is written ${NAME}"),
        ("$HOST/v1", "expected a URL that starts with http:// or https://: a variable is written ${NAME}"),
        ("http://a b", "expected a URL without spaces"),
        ('"http://a\\tb"', "expected a URL without spaces"),
        ('"http://a\\u200bb"', "expected a URL without spaces"),
        ("http://box:0", "expected a URL with a port from 1 to 65535"),
        ("'http://box:'", "expected a URL with a port from 1 to 65535"),
        ("http://box:99999", "found a URL with a malformed host or port"),
        ("http://box:x", "found a URL with a malformed host or port"),
        ("http://[::1", "found a URL with a malformed host or port"),
        ("http://[v1.x:y]", "expected a URL with a host"),
        (
            "http://me:canary@box",
            "found a user name in the URL, expected none: only a bearer key can be sent, as api_key",
        ),
        (
            "http://box/v1?key=canary",
            "found a query or a fragment in the URL, expected none: only a bearer key can be sent, as api_key",
        ),
        ("http://box/v1#canary", "found a query or a fragment"),
        ("http://box/v1?", "found a query or a fragment"),
        ("http://box/v1/chat/completions", "expected the base URL, without the /chat/completions that is added to it"),
        ("http://box/chat/completions/", "found 'http://box/chat/completions/', expected the base URL"),
        ("3", "found 3, expected a URL such as http://localhost:8000"),
        ("[x]", "found a list, expected a URL such as http://localhost:8000"),
        ("''", "found '', expected a URL that starts with http:// or https://"),
    ],
)
def test_a_url_is_refused(url: str, message: str) -> None:
    (fault,) = faults(routing=f"local_deployment:\n  - models: [llama]\n    endpoint: {url}\n")
    assert fault.startswith("config/routing.yaml:3:15: local_deployment[0].endpoint: ")
    assert message in fault
    assert "canary" not in fault


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "https://api.example.com/compat/v1/",
        "HTTP://BOX",
        "http://[::1]:8000/v1",
        "http://10.0.0.1",
        "http://gpu_box-1.local:65535",
        "http://bücher.example",
        "http://box/chat/completions/v1",
        "http://box/completions",
    ],
)
def test_a_url_is_kept_as_it_is_written(url: str) -> None:
    loaded = load(routing=f"local_deployment:\n  - models: [llama]\n    endpoint: {url}\n")
    assert loaded.routing is not None
    assert loaded.routing.local_deployment[0].endpoint == url


def test_missing_fields_are_told_at_their_parent() -> None:
    assert faults("models:\n  - name: x\n") == ["config/models.yaml:2:5: models[0].id: missing, and it has no default"]
    assert faults(routing="local_deployment:\n  - name: x\n") == [
        "config/routing.yaml:2:5: local_deployment[0].endpoint: missing, and it has no default",
        "config/routing.yaml:2:5: local_deployment[0].models: missing, and it has no default",
    ]


def test_a_list_with_faulty_items_is_not_told_to_be_empty() -> None:
    assert faults(routing=split("").replace("[llama]", "[llama, 3]")) == [
        "config/routing.yaml:3:21: local_deployment[0].models[1]: found 3, expected text: quote it"
    ]


def test_long_values_are_shortened() -> None:
    (fault,) = faults(models(f"provider: {'x' * 200}"))
    assert f"found '{'x' * 40}...', expected one of" in fault


def test_nothing_below_a_list_or_mapping_is_its_default() -> None:
    fields = ["local_deployment", "routing_parameter", "health_check", "logging", "remote_deployment"]
    fields += ["timeouts", "retries", "breaker"]
    loaded = load(
        models("aliases:\nroute:\ntimeouts:\nfallbacks:"), "timeout: 3\n" + "".join(f"{field}:\n" for field in fields)
    )
    assert not loaded.faults
    assert loaded.routing == RoutingDocument(timeout=3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known(kind: str) -> None:
    loaded = load(models(f"provider: {kind}"), split(f"kind: {kind}"))
    assert loaded.models is not None
    assert loaded.routing is not None
    assert loaded.models.models[0].provider == loaded.routing.local_deployment[0].kind == kind


def test_the_defaults_are_those_of_the_design() -> None:
    assert RoutingDocument() == RoutingDocument(
        routing_strategy="fixed",
        routing_parameter={},
        timeout=2,
        timeouts=Timeouts(connect=None, first_token=None, idle=None, total=None),
        retries=Retries(attempts=6, ratio=0.2, retry_after_max=3),
        breaker=BreakerEntry(failures=5, hold=15, longest_hold=60),
        health_check=HealthCheck(interval=0, path=None, unhealthy_after=1, healthy_after=1),
        logging=Logging(output="stdout", level="info"),
        local_deployment=(),
        remote_deployment=(),
    )
    assert RouteEntry().weight == 1
    assert SplitEntry(endpoint="http://box", models=("a",)).weight is None


def test_a_bare_health_check_is_the_interval() -> None:
    loaded = load(routing="health_check: 30")
    assert loaded.routing == RoutingDocument(health_check=HealthCheck(interval=30))
    assert load(routing="health_check: {interval: 30, path: /up, unhealthy_after: 3}").routing == RoutingDocument(
        health_check=HealthCheck(interval=30, path="/up", unhealthy_after=3)
    )


def test_keys_are_secrets_and_an_empty_one_is_none() -> None:
    loaded = load(models("api_key: sk-canary\nroute: [{api_key: ''}, {api_key: }, {}]"))
    assert loaded.models is not None
    entry = loaded.models.models[0]
    assert isinstance(entry.api_key, SecretStr)
    assert entry.api_key.get_secret_value() == "sk-canary"
    assert [route.api_key for route in entry.route or ()] == [None, None, None]
    assert "canary" not in repr(loaded)
    assert RouteEntry(api_key=SecretStr("x")).api_key == SecretStr("x")
    assert RouteEntry(api_key=Unset("X"), base_url=Unset("Y")).api_key == Unset("X")


def test_documents_are_frozen_all_the_way_down() -> None:
    loaded = load(models("pricing: {prompt: 1}"), "routing_parameter: {a: [1, {b: 2}]}")
    assert loaded.models is not None
    assert loaded.routing is not None
    with pytest.raises(ValidationError, match="frozen"):
        loaded.routing.timeout = 3  # type: ignore[misc] # it is read-only, as mypy knows
    assert loaded.routing.routing_parameter == MappingProxyType({"a": (1, MappingProxyType({"b": 2}))})
    assert isinstance(loaded.models.models[0].pricing, MappingProxyType)
    assert isinstance(RoutingDocument().routing_parameter, MappingProxyType)


def test_metadata_is_what_is_set_as_frozen_json() -> None:
    loaded = load(
        models(
            "context_length: 8192\ninput_modalities: [text, image]\n"
            "supports_tools: false\n"
            "pricing: {prompt: 0.5, completion: '0.7', image: 0}\n"
            "description: |\n  Two\n  lines.\nowned_by: me\nname: L"
        )
    )
    assert loaded.models is not None
    assert loaded.models.models[0].metadata() == {
        "name": "L",
        "context_length": 8192,
        "input_modalities": ("text", "image"),
        "supports_tools": False,
        "pricing": {"prompt": 0.5, "completion": "0.7", "image": 0},
        "description": "Two\nlines.\n",
        "owned_by": "me",
    }


def test_the_text_of_a_validation_error_shows_no_value() -> None:
    with pytest.raises(ValidationError) as caught:
        RouteEntry(kind="canary")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "rescue"),
    [
        ("", "on"),
        ("rescue: on", "on"),
        ("rescue: off", "off"),
        ("rescue: replay", "replay"),
        ('rescue: "on"', "on"),
        ("rescue: 'off'", "off"),
    ],
)
def test_a_rescue_needs_no_quotes(field: str, rescue: str) -> None:
    loaded = load(models(field))
    assert not loaded.faults
    assert loaded.models is not None
    assert loaded.models.models[0].rescue == rescue
