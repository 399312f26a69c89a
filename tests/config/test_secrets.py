"""A canary stands where a secret could; no fault, notice or repr shows it."""

from pathlib import Path

import pytest

from gateway.config.load import _read_env, _Variables
from gateway.config.sources import ConfigFiles
from tests.config.loading import load, models, split

CANARY = "sk-canary"


@pytest.mark.parametrize(
    "text",
    [
        f"api_key: [{CANARY}]",
        f"api_key: {{{CANARY}: 1, {CANARY}: 2}}",
        f"api_key: {{1: {CANARY}, <<: {CANARY}}}",
        f"api_key: !x {CANARY}",
        f"api_key: a {CANARY}",
        f'api_key: "{CANARY}\\t"',
        f"api_key:{CANARY}",
        f"api_key={CANARY}: x",
        f"api_key = {CANARY}: x",
        f"{CANARY}: x",
        f"api-key: {CANARY}",
        f"apikey: {CANARY}",
        f"provider: {CANARY}",
        f"provider: Bearer {CANARY}",
        f"provider: token={CANARY}",
        f"base_url: http://me:{CANARY}@box",
        f"base_url: http://box?key={CANARY}",
        f"provider: http://{CANARY}@box",
        f"provider: me:{CANARY}@box",
        "base_url: 'http://me:can ary/canary@box'",
        "base_url: me:canary@box",
        "base_url: canary:canary@box:8000/",
        f"base_url: http://me:{'x' * 500}canary@[box",
        f"provider: http://box?key={CANARY}",
        f"api_key: '{CANARY}",
        f'api_key: "{CANARY}\\q"',
        f"api_key: *{CANARY}",
        f"api_key: &{CANARY} [*{CANARY}]",
        f"api_key: @{CANARY}",
        f"api_key: {CANARY}: x",
        f"api_key: ${{{CANARY}}}",
        f"api_key: ${{X:={CANARY}}}",
        f"name: ${{X:-\x01{CANARY}}}",
        f"token: &a {CANARY}\nname: *a",
    ],
)
def test_faults_of_models_show_no_secret(text: str) -> None:
    base = models(text) if "base_url" not in text else models(text).replace("    base_url: http://box:8000\n", "")
    loaded = load(base)
    assert loaded.faults
    assert "canary" not in "\n".join(map(str, loaded.faults))
    assert "canary" not in repr(loaded)


@pytest.mark.parametrize("value", ["010", "2024-01-01", "yes", "1_000"])
def test_surprises_in_a_key_are_not_shown(value: str) -> None:
    (fault,) = load(models(f"api_key: {value}")).faults
    assert "found a hidden value, which YAML 1.1 reads" in str(fault)
    assert value not in str(fault)


@pytest.mark.parametrize(
    "text",
    [
        f"routing_parameter: {{secret: {{{CANARY}: yes}}}}",
        f"routing_parameter: {{password: {{{CANARY}: 1, {CANARY}: 2}}}}",
        "routing_parameter: {token: {010: 1, yes: 2}}",
    ],
)
def test_nothing_below_a_name_of_a_secret_is_shown(text: str) -> None:
    loaded = load(routing=text)
    assert loaded.faults
    told = "\n".join(map(str, loaded.faults))
    assert "canary" not in told
    assert "010" not in told


def test_values_of_the_environment_are_not_shown() -> None:
    loaded = load(
        models("name: ${C}\nowned_by: ' ${C}'\nprovider: ${C}\napi_key: ${C}\nroute: ${C}\npricing: ${C}"),
        split("endpoint: ${C}\nweight: ${C}") + "routing_parameter: ${C}\nlogging: ${C}\ntimeout: ${C}\n",
        environ={"C": "canary"},
        env="D=canary\n",
    )
    assert len(loaded.faults) > 7
    assert "canary" not in "\n".join(map(str, loaded.faults))


def test_variables_show_in_no_repr() -> None:
    values = {"KEY": CANARY}
    assert CANARY not in repr(_Variables(values, values, ()))
    assert CANARY not in repr(_read_env(f"KEY={CANARY}".encode(), ConfigFiles.of(Path("config"), {})))


@pytest.mark.parametrize(
    "text",
    [
        f"clients: {CANARY}",
        "clients: canary-alice-0123456789",
        "clients: [canary-alice-0123456789]",
        "clients:\n  - canary-alice-0123456789\n",
        "clients: {canary-alice-0123456789: alice}",
        "clients: {alice: canary-alice-0123456789}",
        "clients: [{canary-alice-0123456789: alice}]",
        "clients: [{alice: canary-alice-0123456789}]",
        "clients: [{canary: 1, canary: 2}]",
        "clients: [{name: a, api_key: {canary: canary}}]",
        "clients: [{name: a, api_key: [canary]}]",
        "clients: [{name: a, api_key: canary}, {name: b, api_key: canary}]",
        "clients: [[canary]]",
        "clients: [{name: a, api_key: 'canary key'}]",
        "clients: [{name: a, canary: ${X}}]",
        "clients: [{name: a, api_key: canary, canary2: 22:22}]",
        "clients: [{? [canary] : 1}]",
    ],
)
def test_faults_of_clients_show_no_key(text: str) -> None:
    """A key that was written without its field was told, in the log and in `/routing`."""
    loaded = load(routing=text)
    assert loaded.faults
    assert "canary" not in "\n".join(map(str, loaded.faults))
    assert "canary" not in repr(loaded)


def test_a_misspelt_field_of_a_client_is_named() -> None:
    told = [str(fault) for fault in load(routing="clients: [{name: a, apikey: x}]").faults]
    assert [each for each in told if each.endswith("unknown key 'apikey', did you mean 'api_key'?")]
