import json

import pytest
import yaml

from gateway.config.documents import ModelsDocument, RoutingDocument
from gateway.config.load import Loaded
from tests.config.loading import MODELS, faults, load, models, split

SMALLEST = 'local_deployment: [{endpoint: "http://localhost:8000", models: ["llama"]}]'


def test_two_good_files_are_two_documents() -> None:
    loaded = load(routing=split(""))
    assert not loaded.faults
    assert not loaded.notices
    assert isinstance(loaded.models, ModelsDocument)
    assert isinstance(loaded.routing, RoutingDocument)


def test_routing_is_optional() -> None:
    loaded = load()
    assert not loaded.faults
    assert loaded.routing is None


def test_models_are_not() -> None:
    loaded = load(None)
    assert loaded.models is None
    assert [str(fault) for fault in loaded.faults] == [
        "config/models.yaml: not found, expected the list of models there: see docs/configuration.md"
    ]


@pytest.mark.parametrize("text", ["", "# half written\n", "---\n", "~", "{}"])
def test_an_empty_file_is_a_fault(text: str) -> None:
    assert faults(text, text) == [
        "config/models.yaml: empty, expected models: and a list of at least one model",
        (
            "config/routing.yaml: empty, as a file that is still being written: to serve without a split, write "
            "local_deployment: []"
        ),
    ]


def test_a_first_document_that_is_empty_is_told_with_the_second() -> None:
    assert faults("---\n---\nmodels: []\n") == [
        "config/models.yaml: empty, expected models: and a list of at least one model",
        "config/models.yaml:2:1: found a second document, expected one: a line '---' starts a document",
    ]


def test_all_faults_of_both_files_come_at_once_in_the_order_of_the_files() -> None:
    loaded = load(
        "models:\n  - id: llama\n    base_ulr: http://box\n    weight: yes\n  - id: llama\n    name: ${NAME}\n",
        "timeout: -1\nlocal_deployment:\n  - endpoint: box\n    models: [lama, llama, llama]\nfoo: 1\nfoo: 2\n",
        env=b"\xff",
    )
    assert (loaded.models, loaded.routing) == (None, None)
    assert [str(fault) for fault in loaded.faults] == [
        ".env:1:1: found bytes that are not UTF-8, expected UTF-8 text",
        "config/models.yaml:3:5: models[0].base_ulr: unknown key 'base_ulr', did you mean 'base_url'?",
        (
            "config/models.yaml:4:13: models[0].weight: found yes, which YAML 1.1 reads as true or false and YAML 1.2 "
            "as text: write true or false, or quote it"
        ),
        (
            "config/models.yaml:5:9: models[1].id: found 'llama', expected a name of its own: "
            "models[0].id (config/models.yaml:2:9) has it"
        ),
        "config/models.yaml:6:11: models[1].name: found ${NAME}, which is not set and has no default",
        "config/routing.yaml:1:10: timeout: found -1, expected a number above 0",
        (
            "config/routing.yaml:3:15: local_deployment[0].endpoint: found 'box', expected a URL that starts with "
            "http:// or https://"
        ),
        (
            "config/routing.yaml:4:14: local_deployment[0].models[0]: found 'lama', expected a model of "
            "config/models.yaml, did you mean 'llama'?"
        ),
        (
            "config/routing.yaml:4:27: local_deployment[0].models[2]: found 'llama', expected each model once: "
            "see local_deployment[0].models[1]"
        ),
        (
            "config/routing.yaml:5:1: foo: unknown key 'foo', expected one of routing_strategy, routing_parameter, "
            "timeout, timeouts, retries, breaker, health_check, logging, ledger, clients, local_deployment, "
            "remote_deployment"
        ),
        "config/routing.yaml:6:1: foo: found the key a second time, expected it once: the first is in line 5",
    ]


def test_a_fault_in_one_file_leaves_the_other_document() -> None:
    assert load("models: [", split("")).routing is not None
    assert load(routing="timeout: 0").models is not None


def test_a_broken_value_that_any_field_would_take_still_spoils_its_document() -> None:
    loaded = load(routing="routing_parameter: {a: yes}")
    assert loaded.routing is None
    assert len(loaded.faults) == 1


@pytest.mark.parametrize(("text", "found"), [("[a]", "a list"), ("a", "'a'"), ("3", "3")])
def test_a_models_file_that_is_no_mapping_is_a_fault(text: str, found: str) -> None:
    assert faults(text) == [f"config/models.yaml:1:1: found {found}, expected a mapping"]


def test_a_mapping_that_has_only_bad_keys_has_no_further_fault() -> None:
    assert faults(routing="1: 2") == ["config/routing.yaml:1:1: found 1 as a key, expected text: quote it"]


def place(loaded: Loaded, *path: str | int) -> str:
    return str(loaded.fault("routing", path, "m"))


def test_others_can_place_faults_of_their_own() -> None:
    loaded = load(routing="# split\n" + split("weight: 2"))
    assert place(loaded, "local_deployment", 0, "weight") == "config/routing.yaml:5:13: local_deployment[0].weight: m"
    assert place(loaded, "local_deployment", 0, "name") == "config/routing.yaml:3:5: local_deployment[0].name: m"
    assert place(loaded, "routing_parameter", "x") == "config/routing.yaml:2:1: routing_parameter.x: m"
    assert str(loaded.fault("models", ("models", 0, "id"), "m")) == "config/models.yaml:2:9: models[0].id: m"
    assert place(load(), "routing_strategy") == "config/routing.yaml: routing_strategy: m"
    assert str(load(None).fault("models", (), "m")) == "config/models.yaml: m"


def test_positions_take_no_part_in_comparison_and_repr() -> None:
    assert load() == load("# more\n" + MODELS)
    assert "Tree" not in repr(load())


# names


def test_names_are_unique_over_ids_and_aliases() -> None:
    text = "models:\n  - {id: a, aliases: [b, a]}\n  - {id: c, aliases: [b]}\n  - {id: b}\n"
    assert faults(text) == [
        (
            "config/models.yaml:2:26: models[0].aliases[1]: found 'a', expected a name of its own: "
            "models[0].id (config/models.yaml:2:10) has it"
        ),
        (
            "config/models.yaml:3:23: models[1].aliases[0]: found 'b', expected a name of its own: "
            "models[0].aliases[0] (config/models.yaml:2:23) has it"
        ),
        (
            "config/models.yaml:4:10: models[2].id: found 'b', expected a name of its own: "
            "models[0].aliases[0] (config/models.yaml:2:23) has it"
        ),
    ]


def test_models_are_listed_by_id_or_alias() -> None:
    assert not faults(models("aliases: [l]"), split("").replace("[llama]", "[l]"))


def test_an_id_and_its_alias_are_one_model() -> None:
    assert faults(models("aliases: [l]"), split("").replace("[llama]", "[l, llama]")) == [
        (
            "config/routing.yaml:3:17: local_deployment[0].models[1]: found 'llama', expected each model once: "
            "see local_deployment[0].models[0]"
        )
    ]


def test_one_model_may_be_listed_by_several_entries() -> None:
    assert not faults(routing=split("") + split("").replace("local", "remote"))


def test_an_unknown_model_far_from_all_is_offered_nothing() -> None:
    assert faults(routing=split("").replace("[llama]", "[zzz]")) == [
        "config/routing.yaml:3:14: local_deployment[0].models[0]: found 'zzz', expected a model of config/models.yaml"
    ]


def test_a_name_that_has_a_fault_is_known_nevertheless() -> None:
    told = faults(MODELS.replace("llama", "yes") + "  - id: yes\n", split("").replace("[llama]", "['yes', on]"))
    assert [fault.split(",")[0] for fault in told] == [
        "config/models.yaml:2:9: models[0].id: found yes",
        "config/models.yaml:4:9: models[1].id: found yes",
        "config/routing.yaml:3:21: local_deployment[0].models[1]: found on",
    ]


def test_names_of_variables_are_compared_and_not_shown() -> None:
    text = "models:\n  - id: ${A}\n  - id: ${A}\n"
    (twice, unknown) = faults(text, split("").replace("[llama]", "['${A}', canar]"), environ={"A": "canary"})
    assert twice.startswith("config/models.yaml:3:9: models[1].id: found the value of ${A}, expected a name of its own")
    assert unknown.endswith("found 'canar', expected a model of config/models.yaml")


def test_no_model_is_unknown_while_the_models_cannot_be_read() -> None:
    routing = split("").replace("[llama]", "[llama, llama]")
    twice = (
        "config/routing.yaml:3:21: local_deployment[0].models[1]: found 'llama', expected each model once: "
        "see local_deployment[0].models[0]"
    )
    assert faults("models: [", routing)[1:] == [twice]
    assert faults("models: 3", routing)[1:] == [twice]
    assert faults(None, routing)[1:] == [twice]


# the deprecated format


@pytest.mark.parametrize("text", ["deployments:\n  - llama\nstrategy: fixed\n", "\n- endpoint: http://box\n"])
def test_a_routing_file_without_a_key_of_today_is_the_deprecated_format(text: str) -> None:
    (fault,) = faults(routing=text)
    assert fault.startswith(f"config/routing.yaml:{1 + text.startswith(chr(10))}:1: found the deprecated deployment")
    assert SMALLEST in fault
    assert "docs/migration.md" in fault


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("local_deployments", "local_deployment"),
        ("Remote_Deployment", "remote_deployment"),
        ("routing-strategy", "routing_strategy"),
    ],
)
def test_a_routing_file_whose_one_key_is_misspelt_is_not(key: str, meant: str) -> None:
    assert faults(routing=f"{key}: []\n") == [
        f"config/routing.yaml:1:1: {key}: unknown key {key!r}, did you mean {meant!r}?"
    ]


@pytest.mark.parametrize("name", ["deployment.yaml", "deployment.example.yml"])
def test_a_file_of_the_deprecated_format_in_place_of_a_routing_file_is_a_fault(name: str) -> None:
    (fault,) = faults(legacy=name)
    assert fault.startswith(f"config/{name}: found the deprecated deployment format")
    assert SMALLEST in fault
    assert "docs/migration.md" in fault
    assert load(legacy=name).notices == ()


def test_a_routing_config_that_names_a_file_of_the_deprecated_format_is_a_fault() -> None:
    environ = {"ROUTING_CONFIG": "old/deployment.yaml"}
    (fault,) = faults(routing="timeout: 2\nmodels: [a]\n", environ=environ)
    assert fault.startswith("old/deployment.yaml:1:1: found the deprecated deployment format")


def test_a_file_of_today_may_be_called_as_it_likes() -> None:
    assert not faults(routing=split(""), environ={"ROUTING_CONFIG": "deployment.yaml"})


def test_a_routing_config_that_is_not_there_is_a_fault() -> None:
    assert faults(environ={"ROUTING_CONFIG": "r.yaml"}) == ["r.yaml: not found, though ROUTING_CONFIG names it"]
    assert not load(env="ROUTING_CONFIG=r.yaml\n").faults


def test_a_file_that_ends_as_yaml_files_also_do_is_a_fault_and_not_passed_over() -> None:
    told = "routing.yaml: not found, and routing.yml is not read: rename it to routing.yaml"
    assert faults(misnamed=frozenset({"config/routing.yml"})) == [f"config/{told}"]
    named = {"ROUTING_CONFIG": "r.yml"}
    assert faults(environ=named, misnamed=frozenset({"r.yaml"})) == ["r.yml: not found, though ROUTING_CONFIG names it"]
    assert faults(None, misnamed=frozenset({"config/models.yml"})) == [
        "config/models.yaml: not found, and models.yml is not read: rename it to models.yaml: see docs/configuration.md"
    ]


def test_a_file_of_the_deprecated_format_beside_a_good_one_is_a_notice() -> None:
    loaded = load(routing=split(""), legacy="deployment.yaml")
    assert not loaded.faults
    assert [str(notice) for notice in loaded.notices] == [
        "config/deployment.yaml: not read, routing.yaml is: its format is deprecated (see docs/migration.md)"
    ]


def test_the_smallest_file_that_is_shown_is_a_good_one() -> None:
    assert not faults(routing=SMALLEST)


@pytest.mark.parametrize("model", ['odd "name', "22:22", "llama:70b", "lläma 🦙", "$$"])
def test_it_names_a_model_of_the_models_file(model: str) -> None:
    text = MODELS.replace("llama", json.dumps(model, ensure_ascii=False))
    (fault,) = faults(text, "old: 1")
    shown = fault.partition("such as ")[2].removesuffix(" (see docs/migration.md)")
    assert yaml.safe_load(shown)["local_deployment"][0]["models"] == [model]
    assert not faults(text, shown)


def test_it_names_the_example_model_when_there_is_none_to_show() -> None:
    (fault,) = faults(MODELS.replace("llama", "${A}"), "old: 1", environ={"A": "canary"})
    assert 'models: ["llama-3.3-70b-instruct"]' in fault


def test_what_was_read_may_be_let_go_and_the_documents_stay() -> None:
    loaded = load("models: [{id: llama, aliases: [l3], base_url: 'http://box:8000'}]", "timeouts: {connect: 3}\n")
    assert loaded.fault("models", ("models", 0, "aliases"), "").column == 31
    loaded.let_go()
    assert loaded.fault("models", ("models", 0, "aliases"), "").column == 0
    assert loaded.at("routing", ("timeouts",)) is None
    assert loaded.models is not None
    assert loaded.models.models[0].aliases == ("l3",)
