from pathlib import Path
from types import MappingProxyType

import pytest
from pydantic import SecretStr

from gateway.config.documents import RoutingDocument
from gateway.config.environment import Interpolated
from gateway.config.fields import Unset
from gateway.config.load import parse
from gateway.config.sources import ConfigFiles, Sources
from tests.config.loading import MODELS, faults, load, models, split


def routing(text: str, **environ: str) -> RoutingDocument:
    loaded = load(routing=text, environ=environ)
    assert not loaded.faults
    assert loaded.routing is not None
    return loaded.routing


@pytest.mark.parametrize("written", ["${F:-0.6}", '"${F:-0.6}"', "'${F:-0.6}'"])
def test_interpolated_text_may_be_a_number(written: str) -> None:
    document = routing(f"timeout: {written}\nrouting_parameter: \n  local_fraction: {written}\n")
    assert document.timeout == 0.6
    assert document.routing_parameter == {"local_fraction": 0.6}


def test_interpolated_text_may_be_a_flag_a_choice_and_text() -> None:
    loaded = load(
        models(
            "provider: ${KIND}\nname: ${NAME}\nsupports_tools: ${TOOLS}\ncontext_length: ${LENGTH}\nquantization: ${N}"
        ),
        environ={"KIND": "vllm", "NAME": "My ${X}", "TOOLS": "true", "LENGTH": "8192", "N": "4"},
    )
    assert loaded.models is not None
    entry = loaded.models.models[0]
    assert (entry.provider, entry.name, entry.supports_tools, entry.context_length, entry.quantization) == (
        "vllm",
        "My ${X}",
        True,
        8192,
        "4",
    )
    assert type(entry.name) is str


def test_numbers_inside_a_mapping_of_prices_may_be_interpolated() -> None:
    loaded = load(models("pricing: {prompt: '${P}', text: '${T}'}"), environ={"P": "0.5", "T": "free"})
    assert loaded.models is not None
    assert loaded.models.models[0].metadata() == {"pricing": {"prompt": 0.5, "text": "free"}}


def test_a_value_of_a_variable_is_not_shown_in_a_fault() -> None:
    told = faults(
        models("provider: ${V}\nsupports_tools: ${V}\ncontext_length: ${V}\napi_key: ${W}\nbase_url: ${V}").replace(
            "    base_url: http://box:8000\n", ""
        ),
        split("weight: ${V}\nhealth_path: ${V}\nname: ${V}${W}").replace("[llama]", "['${V}', llama]"),
        environ={"V": "canary", "W": " canary "},
    )
    assert len(told) == 9
    assert not [fault for fault in told if "canary" in fault]
    assert "config/models.yaml:3:15: models[0].provider: found the value of ${V}, expected one of openai" in told[0]
    assert "models[0].api_key: found the value of ${W} with a space" in told[3]
    assert "models[0]: found the value of ${V}, expected a model of config/models.yaml" in told[5]
    assert "name: found the value of ${V}${W}, expected printable text" in told[8]


def test_an_empty_value_means_none() -> None:
    loaded = load(
        models("name: ${E}\nprovider: ${E}\napi_key: ${E}\nroute: '${E}'\ncontext_length: ${E}\naliases: ${E}"),
        split("weight: ${E}\nkind: ${E}\napi_key: ${E:-}").replace(
            "local", "timeout: ${E}\nhealth_check: ${E}\nlocal", 1
        )
        + "routing_parameter: {a: '${E}', b: '${F}'}\nlogging: {output: '${E}'}\n",
        environ={"E": "", "F": "text"},
    )
    assert not loaded.faults
    assert loaded.models is not None
    assert loaded.routing is not None
    entry, deployment = loaded.models.models[0], loaded.routing.local_deployment[0]
    assert (entry.name, entry.provider, entry.api_key, entry.route, entry.aliases) == (None, "openai", None, None, ())
    assert (deployment.weight, deployment.kind, deployment.api_key) == (None, None, None)
    assert (loaded.routing.timeout, loaded.routing.logging.output) == (2.0, "stdout")
    assert loaded.routing.routing_parameter == {"b": "text"}


def test_an_empty_value_where_one_is_needed_is_a_fault() -> None:
    assert faults(MODELS.replace("llama", "${E}"), environ={"E": ""}) == [
        (
            "config/models.yaml:2:9: models[0].id: found the empty value of ${E}, "
            "expected printable text without leading or trailing spaces"
        )
    ]


def test_an_unset_variable_in_an_address_or_a_key_waits() -> None:
    loaded = load(
        "models:\n  - id: llama\n    base_url: ${URL}\n    api_key: ${KEY}\n"
        "    route:\n"
        "      - {base_url: 'http://${HOST}:8000', api_key: 'x-${KEY}'}\n"
        "      - {base_url: '${EMPTY}', api_key: '${EMPTY}'}\n",
        "local_deployment:\n  - {endpoint: '${URL:-${OTHER}}', models: [llama], api_key: '${KEY}'}\n"
        "remote_deployment:\n  - {endpoint: '${EMPTY:-}', models: [llama]}\n",
        environ={"EMPTY": ""},
    )
    assert not loaded.faults
    assert loaded.models is not None
    assert loaded.routing is not None
    entry = loaded.models.models[0]
    assert entry.route is not None
    assert (entry.base_url, entry.api_key) == (Unset("URL", "${URL}"), Unset("KEY"))
    assert [(route.base_url, route.api_key) for route in entry.route] == [
        (Unset("HOST", "http://${HOST}:8000"), Unset("KEY")),
        (Unset("EMPTY", "${EMPTY}"), None),
    ]
    (local,), (remote,) = loaded.routing.local_deployment, loaded.routing.remote_deployment
    assert (local.endpoint, local.api_key) == (Unset("OTHER", "${URL:-${OTHER}}"), Unset("KEY"))
    assert remote.endpoint == Unset("EMPTY", "${EMPTY:-}")


def test_an_address_that_waits_hides_what_is_written_besides() -> None:
    loaded = load(models("route: [{base_url: 'http://canary@${HOST}'}]"))
    assert not loaded.faults
    assert "canary" not in repr(loaded)


def test_an_unset_variable_elsewhere_is_a_fault_with_the_nearest_name_of_the_dot_env() -> None:
    assert faults(
        routing=split("name: ${NAM}${OTHER}") + "routing_parameter: {api_key: '${KEY}'}\nlogging: {output: '${NAM}'}\n",
        env="NAME=x\n",
    ) == [
        (
            "config/routing.yaml:4:11: local_deployment[0].name: "
            "found ${NAM}, which is not set and has no default, did you mean 'NAME'?"
        ),
        "config/routing.yaml:4:11: local_deployment[0].name: found ${OTHER}, which is not set and has no default",
        "config/routing.yaml:5:30: routing_parameter.api_key: found ${KEY}, which is not set and has no default",
        (
            "config/routing.yaml:6:19: logging.output: "
            "found ${NAM}, which is not set and has no default, did you mean 'NAME'?"
        ),
    ]


def test_a_malformed_reference_is_a_fault() -> None:
    assert faults(routing=split("name: ${NAM-canary}")) == [
        (
            "config/routing.yaml:4:11: local_deployment[0].name: "
            "found a '${' that begins no ${NAME} or ${NAME:-default}: write $$ for a dollar"
        )
    ]


def test_a_value_that_is_no_utf_8_is_a_fault() -> None:
    assert faults(routing=split("name: ${NAME}"), environ={"NAME": "x\udcff"}) == [
        "config/routing.yaml:4:11: local_deployment[0].name: found a value of ${NAME} that is not UTF-8 text"
    ]


def test_keys_are_not_interpolated() -> None:
    assert faults(routing="local_deployment:\n${KEY}: 1\n", environ={"KEY": "timeout"}) == [
        (
            "config/routing.yaml:2:1: ['${KEY}']: unknown key '${KEY}', expected one of routing_strategy, "
            "routing_parameter, timeout, timeouts, retries, breaker, health_check, logging, ledger, clients, "
            "local_deployment, remote_deployment"
        )
    ]


def test_a_document_that_is_a_variable_is_no_mapping() -> None:
    assert faults(routing="${ALL}", environ={"ALL": "timeout: 2"}) == [
        "config/routing.yaml:1:1: found the value of ${ALL}, expected a mapping"
    ]


def test_dollars() -> None:
    document = routing("routing_parameter: {a: $$, b: $x, c: '$${A}', d: '$'}\n")
    assert document.routing_parameter == {"a": "$", "b": "$x", "c": "${A}", "d": "$"}


def test_the_environment_wins_over_the_dot_env() -> None:
    loaded = load(routing="logging: {output: '${A}-${B}'}", env="A=file\nB=file\n", environ={"A": "environment"})
    assert loaded.routing is not None
    assert loaded.routing.logging.output == "environment-file"


def test_lines_of_the_dot_env_that_assign_nothing_are_notices() -> None:
    loaded = load(env="A=1\nfoo bar\n")
    assert not loaded.faults
    assert [str(notice) for notice in loaded.notices] == [
        ".env:2:1: found a line that is not NAME=value, it is ignored"
    ]


@pytest.mark.parametrize(
    ("named", "told"),
    [(None, []), (Path("keys"), ["keys: not found, though --env-file or GATEWAY_ENV_FILE names it"])],
)
def test_a_file_of_variables_is_missed_where_it_is_named(named: Path | None, told: list[str]) -> None:
    loaded = parse(Sources(MODELS.encode(), None), ConfigFiles.of(Path("config"), {}, named), {})
    assert not loaded.faults
    assert [str(notice) for notice in loaded.notices] == told


def test_a_dot_env_that_is_no_utf_8_is_a_fault() -> None:
    assert faults(env=b"A=1\nB=\xff\n") == [".env:2:3: found bytes that are not UTF-8, expected UTF-8 text"]


def test_interpolated_parameters_stay_hidden() -> None:
    parameters = routing("routing_parameter: {a: ['${A}'], b: {c: x}}", A="canary").routing_parameter
    assert parameters == MappingProxyType({"a": ("canary",), "b": MappingProxyType({"c": "x"})})
    assert "canary" not in repr(parameters)


def test_a_key_is_plain_text_again() -> None:
    loaded = load(models("api_key: ${KEY}"), environ={"KEY": "sk-1"})
    assert loaded.models is not None
    key = loaded.models.models[0].api_key
    assert isinstance(key, SecretStr)
    assert not isinstance(key.get_secret_value(), Interpolated)


def test_a_key_that_reads_like_a_shells_variable_gets_a_warning() -> None:
    told = "found what looks like a variable and is sent as it stands: write ${NAME} for its value"
    loaded = load(models("api_key: $KEY"), split("api_key: '$_OTHER1'"), environ={"KEY": "secret"})
    assert loaded.faults == ()
    assert [str(notice) for notice in loaded.notices] == [
        f"config/models.yaml:4:14: models[0].api_key: {told}",
        f"config/routing.yaml:4:14: local_deployment[0].api_key: {told}",
    ]
    assert loaded.models is not None
    assert loaded.models.models[0].api_key == SecretStr("$KEY")


@pytest.mark.parametrize("key", ["$$KEY", "$KEY-1", "x$KEY", "${KEY}", "$1", "$"])
def test_any_other_key_gets_none(key: str) -> None:
    assert load(models(f"api_key: {key}"), environ={"KEY": "$KEY"}).notices == ()


def test_a_parameter_of_a_strategy_is_no_key() -> None:
    assert load(routing="routing_parameter: {api_key: $KEY}").notices == ()
