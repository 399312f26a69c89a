from collections.abc import Mapping

import pytest

from gateway.routing.snapshot import Inactive
from tests.routing.planning import BOXES, ONE_BOX, SPLIT, chain, claim, deployments, faults, keys, make, notices, shares


def groups(models: str, routing: str | None, model: str = "llama") -> dict[str, str]:
    return {name: deployment.group for name, deployment in deployments(make(models, routing), model).items()}


def test_an_entry_claims_the_endpoint_for_the_models_it_lists_and_no_others() -> None:
    models = ONE_BOX + "  - {id: scout, base_url: 'http://box:8000'}\n"
    made = make(models, claim("http://box:8000"))
    assert groups(models, claim("http://box:8000")) == {"box:8000": "local"}
    assert groups(models, claim("http://box:8000"), "scout") == {"box:8000": "unlisted"}
    assert made.split == {"llama"}
    assert made.notices == ()


def test_a_model_is_listed_by_id_or_by_alias() -> None:
    assert groups(BOXES, claim("http://a:8000", "l3")) == {"a": "local", "b": "unlisted", "cloud": "unlisted"}


@pytest.mark.parametrize(
    ("registered", "claimed"),
    [
        ("http://box:8000", "http://box:8000/"),
        ("http://box:8000", "http://box:8000/v1"),
        ("http://box:8000/v1/", "http://box:8000"),
        ("http://Box:8000", "HTTP://box:8000"),
        ("http://box", "http://box:80/v1"),
        ("https://box:443/x/v1", "https://box/x/"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_endpoints_are_one_by_origin_and_path_without_v1(registered: str, claimed: str) -> None:
    models = f"models: [{{id: llama, base_url: '{registered}'}}]"
    assert list(groups(models, claim(claimed)).values()) == ["local"]


@pytest.mark.parametrize(
    ("registered", "claimed"),
    [
        ("http://box:8000", "https://box:8000"),
        ("http://box:8000", "http://box:8001"),
        ("http://box:8000", "http://box.lan:8000"),
        ("http://box:8000/x", "http://box:8000/y"),
        ("http://box:8000/X", "http://box:8000/x"),
        ("http://box:8000/v1", "http://box:8000/v2"),
    ],
)
def test_endpoints_that_differ_in_anything_else_are_two(registered: str, claimed: str) -> None:
    models = f"models: [{{id: llama, base_url: '{registered}'}}]"
    routing = claim(claimed, more=", name: added")
    assert sorted(groups(models, routing).values()) == ["local", "unlisted"]


def test_a_claimed_deployment_keeps_the_address_it_was_registered_with() -> None:
    models = "models: [{id: llama, base_url: 'https://host/compat'}]"
    [deployment] = deployments(make(models, claim("https://host/compat/v1"))).values()
    assert deployment.urls["chat/completions"] == "https://host/compat/chat/completions"


def test_one_entry_claims_all_that_is_registered_at_its_endpoint() -> None:
    route = "[{provider_model_id: q4, name: q4}, {provider_model_id: q8, name: q8}]"
    models = f"models: [{{id: llama, base_url: 'http://box:8000', route: {route}}}]"
    assert groups(models, claim("http://box:8000")) == {"q4": "local", "q8": "local"}


def test_claiming_an_endpoint_twice_for_a_model_is_a_fault() -> None:
    routing = claim("http://a:8000") + "remote_deployment:\n  - {endpoint: 'http://a:8000/v1', models: [l3]}\n"
    assert faults(BOXES, routing) == [
        (
            "routing.yaml:3:45: remote_deployment[0].models[0]: llama at http://a:8000 is claimed by "
            "local_deployment[0] already, expected one entry"
        )
    ]


def test_adding_an_endpoint_twice_for_a_model_is_a_fault() -> None:
    entries = "[{endpoint: 'http://c', models: [llama]}, {endpoint: 'http://c', models: [llama]}]"
    [fault] = faults(BOXES, f"local_deployment: {entries}")
    assert "llama at http://c is claimed by local_deployment[0] already" in fault


@pytest.mark.parametrize("written", ["models", "routing"])
def test_with_another_key_the_same_is_another_deployment(written: str) -> None:
    if written == "models":
        entries = "{name: one, api_key: k1}, {name: two, api_key: k2}, {name: none}"
        made = make(f"models: [{{id: llama, base_url: 'http://c', route: [{entries}]}}]")
    else:
        entry = "{{endpoint: 'http://c', models: [llama], name: {}{}}}"
        told = entry.format("one", ", api_key: k1"), entry.format("two", ", api_key: k2"), entry.format("none", "")
        made = make("models: [{id: llama}]", f"remote_deployment: [{', '.join(told)}]")
    keys = {each.name: each.key and each.key.get_secret_value() for each in made.catalogue.deployments.values()}
    assert keys == {"one": "k1", "two": "k2", "none": None}
    assert {float(weight) for weight in made.configured["llama"].values()} == {1 / 3}


def test_another_key_needs_another_name() -> None:
    [fault] = faults("models: [{id: llama, base_url: 'http://c', route: [{api_key: k1}, {api_key: k2}]}]")
    assert "two deployments of llama are called c:80, give one a `name` of its own" in fault


@pytest.mark.parametrize("key", ["", ", api_key: k", ", api_key: '${K}'"])
def test_with_the_same_key_it_is_claimed_twice(key: str) -> None:
    told = (f"{{endpoint: 'http://c', models: [llama], name: {name}{key}}}" for name in ("one", "two"))
    [fault] = faults(BOXES, f"remote_deployment: [{', '.join(told)}]")
    assert "llama at http://c is claimed by remote_deployment[0] already" in fault


def test_a_routing_file_that_lists_nobody_leaves_the_weights_of_models_yaml() -> None:
    made = make(BOXES, "timeout: 3")
    assert made.split == frozenset()
    assert made.notices == ()
    assert set(shares(BOXES, "timeout: 3").values()) == {make(BOXES).routes["llama"].weights[0]}


def test_unlisted_deployments_are_fallbacks_with_a_warning() -> None:
    routing = claim("http://b:8000")
    assert shares(BOXES, routing) == {"b": 1, "a": 0, "cloud": 0}
    assert notices(BOXES, routing) == [
        (
            "models.yaml:6:9: models[0].route[0]: routing.yaml lists llama but not at http://a:8000, so this is a "
            "fallback only"
        ),
        (
            "models.yaml:8:9: models[0].route[2]: routing.yaml lists llama but not at https://cloud.example, so this "
            "is a fallback only"
        ),
    ]


def test_unlisted_deployments_stay_in_the_order_written() -> None:
    assert chain(make(BOXES, claim("https://cloud.example")).routes["llama"]) == ["cloud", "a", "b"]


def test_unlisted_deployments_serve_when_all_that_is_listed_waits_for_a_variable() -> None:
    assert shares(BOXES, claim("${BOX}")) == {"a": 1, "b": 0, "cloud": 0}


def test_an_unset_base_url_makes_its_deployment_inactive() -> None:
    made = make("models: [{id: llama, route: [{base_url: 'http://box'}, {base_url: '${URL}'}]}]")
    assert list(deployments(made)) == ["box:80"]
    assert made.inactive == (Inactive("llama", "unlisted", "URL", "${URL}"),)
    assert [str(notice) for notice in made.notices] == [
        "models.yaml:1:67: models[0].route[1].base_url: URL is not set or empty, so a deployment of llama is inactive"
    ]


def test_an_unset_base_url_of_the_model_is_told_of_where_it_stands() -> None:
    made = make("models: [{id: llama, base_url: '${URL}', route: [{name: a}, {base_url: 'http://b'}]}]")
    assert made.notices[0].path == "models[0].base_url"


def test_an_unset_key_of_its_own_or_inherited_makes_a_deployment_inactive() -> None:
    route = "[{name: a}, {name: b, api_key: '${OWN}'}, {name: c, api_key: set, provider_model_id: c}]"
    made = make(f"models: [{{id: llama, base_url: 'http://box', api_key: '${{KEY}}', route: {route}}}]")
    assert list(deployments(made)) == ["c"]
    assert [(notice.path, notice.message.split()[0]) for notice in made.notices] == [
        ("models[0].api_key", "KEY"),
        ("models[0].route[1].api_key", "OWN"),
    ]


def test_an_unset_endpoint_of_an_entry_makes_its_deployment_inactive() -> None:
    made = make(BOXES, claim("${BOX}"))
    assert made.inactive == (Inactive("llama", "local", "BOX", "${BOX}"),)
    assert str(made.notices[-1]) == (
        "routing.yaml:1:31: local_deployment[0].endpoint: BOX is not set or empty, so a deployment of llama is inactive"
    )


def test_an_unset_key_of_an_entry_makes_its_deployment_inactive() -> None:
    made = make(BOXES, claim("http://a:8000", more=", api_key: '${KEY}'"))
    assert made.inactive == (Inactive("llama", "local", "KEY", "a"),)
    assert made.notices[-1].path == "local_deployment[0].api_key"
    assert list(deployments(made)) == ["b", "cloud"]


def test_a_key_that_an_entry_gives_ends_the_wait() -> None:
    models = "models: [{id: llama, base_url: 'http://box', api_key: '${KEY}'}]"
    made = make(models, claim("http://box", more=", api_key: given"))
    assert list(keys(made).values()) == ["given"]
    assert (made.inactive, made.notices) == ((), ())


def test_one_variable_in_both_files_is_one_deployment() -> None:
    models = "models: [{id: llama, route: [{base_url: 'http://box'}, {base_url: '${URL}'}]}]"
    routing = claim("http://box") + "remote_deployment: [{endpoint: '${URL}', models: [llama]}]"
    made = make(models, routing)
    assert made.inactive == (Inactive("llama", "remote", "URL", "${URL}"),)
    assert len(made.notices) == 1
    assert shares(models, routing) == {"box:80": 1}


@pytest.mark.parametrize(
    ("registered", "claimed"),
    [("http://${H}:8000", "http://${H}:8000/v1"), ("http://${H}/x/v1/", "http://${H}/x"), ("${H}", "${H}/")],
)
def test_endpoints_that_wait_for_a_variable_are_one_as_written_without_v1(registered: str, claimed: str) -> None:
    models = f"models: [{{id: llama, base_url: '{registered}'}}]"
    assert make(models, claim(claimed)).inactive == (Inactive("llama", "local", "H", "${H}"),)


def test_endpoints_that_wait_for_one_variable_are_two_where_more_is_written() -> None:
    models = """\
models:
  - id: llama
    route:
      - {base_url: "http://x"}
      - {name: a, base_url: "http://${H}:8000", health_path: /a}
      - {name: b, base_url: "http://${H}:9000", health_path: /b}
"""
    routing = """\
local_deployment:
  - {endpoint: "http://${H}:8000", models: [llama]}
  - {endpoint: "http://${H}/c", models: [llama], name: c}
remote_deployment:
  - {endpoint: "http://${H}/d", models: [llama], name: d}
"""
    assert make(models, routing).inactive == (
        Inactive("llama", "local", "H", "a"),
        Inactive("llama", "unlisted", "H", "b"),
        Inactive("llama", "local", "H", "c"),
        Inactive("llama", "remote", "H", "d"),
    )
    assert list(deployments(make(models, routing, H="h"))) == ["x:80", "a", "b", "c", "d"]


def test_two_health_paths_for_an_endpoint_that_waits_are_no_fault_yet() -> None:
    models = "models: [{id: llama, route: [{base_url: '${H}', health_path: /a}, {base_url: '${H}', health_path: /b}]}]"
    assert len(make(models).inactive) == 2


def test_what_a_model_is_left_without_is_told() -> None:
    made = make("models: [{id: llama, base_url: '${URL}'}]", URL="")
    assert made.routes["llama"].chain == ()
    assert made.notices[0].message == (
        "URL is not set or empty, so a deployment of llama is inactive, and it has no other"
    )


def test_the_inactive_are_neither_unlisted_nor_in_the_way_of_names() -> None:
    models = "models: [{id: llama, route: [{name: x, base_url: 'http://a'}, {name: x, base_url: '${URL}'}]}]"
    assert [notice.split(": ")[2].split()[0] for notice in notices(models, claim("http://a"))] == ["URL"]


def test_a_variable_that_is_set_makes_its_deployment_active() -> None:
    made = make("models: [{id: llama, base_url: '${URL}', api_key: '${KEY}'}]", URL="http://box", KEY="canary")
    assert keys(made) == {"box:80": "canary"}
    assert made.notices == ()


def test_an_empty_key_is_no_key() -> None:
    assert keys(make("models: [{id: llama, base_url: 'http://box', api_key: '${KEY:-}'}]")) == {"box:80": None}


def test_names_are_host_and_port_where_none_is_given() -> None:
    models = "models: [{id: llama, route: [{base_url: 'https://Cloud.example/v1'}, {base_url: 'http://[::1]'}]}]"
    assert list(deployments(make(models))) == ["cloud.example:443", "[::1]:80"]


def test_names_are_unique_within_a_model() -> None:
    models = """\
models:
  - id: llama
    route:
      - {base_url: "http://box/x"}
      - {base_url: "http://box/y"}
"""
    assert faults(models) == [
        (
            "models.yaml:5:9: models[0].route[1]: two deployments of llama are called box:80, give one a `name` of its "
            "own: see models[0].route[0]"
        )
    ]


def test_names_may_repeat_in_another_model() -> None:
    models = "models: [{id: llama, base_url: 'http://box'}, {id: scout, base_url: 'http://box'}]"
    assert list(make(models).configured) == ["llama", "scout"]


def test_a_deployment_stands_once_in_a_model() -> None:
    assert faults("models: [{id: llama, base_url: 'http://box', route: [{name: a}, {name: b}]}]") == [
        (
            "models.yaml:1:65: models[0].route[1]: llama has llama at http://box twice, expected each deployment once: "
            "see models[0].route[0]"
        )
    ]


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        (("", ""), "", "llama has llama at http://a:8000 twice, expected each deployment once"),
        (
            (", provider_model_id: q", ""),
            "",
            "two deployments of llama are called a:8000, give one a `name` of its own",
        ),
        (
            (", provider_model_id: q, name: q", ""),
            ", name: box",
            "two deployments of llama are called box, give one a `name` of its own",
        ),
    ],
)
def test_what_stands_twice_is_told_where_it_stands_though_one_entry_claims_both(
    entries: tuple[str, str], more: str, message: str
) -> None:
    route = "".join(f'      - {{base_url: "http://a:8000"{each}}}\n' for each in entries)
    [fault] = faults(f"models:\n  - id: llama\n    route:\n{route}", claim("http://a:8000", more=more))
    assert fault == f"models.yaml:5:9: models[0].route[1]: {message}: see models[0].route[0] and local_deployment[0]"


def test_an_entry_can_make_two_names_alike() -> None:
    routing = claim("http://a:8000", more=", name: b")
    [fault] = faults(BOXES, routing)
    assert fault.startswith("models.yaml:7:9: models[0].route[1]: two deployments of llama are called b")
    assert fault.endswith("see local_deployment[0]")


def test_an_endpoint_has_one_health_path_for_all_its_models() -> None:
    models = "models: [{id: m, base_url: 'http://box', route: [{health_path: /up}]}, {id: k, base_url: 'http://box'}]"
    made = make(models, "health_check: {interval: 1, path: /default}")
    found = {deployments(made, model)["box:80"].endpoint.health_url for model in ("m", "k")}
    assert found == {"http://box/up"}


def test_two_health_paths_for_one_endpoint_are_a_fault() -> None:
    models = """\
models:
  - {id: m, base_url: "http://box", route: [{health_path: /up}]}
  - id: k
    base_url: http://box/v1
    route:
      - health_path: /live
"""
    assert faults(models) == [
        (
            "models.yaml:6:22: models[1].route[0].health_path: http://box has the health_path /live and /up (see "
            "models[0].route[0]), expected one of the two"
        )
    ]


def test_the_default_health_path_is_for_endpoints_that_have_none() -> None:
    made = make(BOXES, "health_check: {interval: 1, path: /default}")
    assert deployments(made)["a"].endpoint.health_url == "http://a:8000/default"
    assert deployments(make(BOXES, "timeout: 1"))["a"].endpoint.health_url == "http://a:8000/health"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (
            "models: [{id: a, base_url: 'http://x'}, {id: llama}]",
            (
                "models.yaml:1:41: models[1]: llama has no deployment: give it a base_url or a route, or list it in "
                "routing.yaml"
            ),
        ),
        (
            "models: [{id: llama, route: [{base_url: 'http://x'}, {weight: 2}]}]",
            "models.yaml:1:54: models[0].route[1].base_url: missing, neither this entry nor llama has one",
        ),
    ],
)
def test_a_model_or_entry_without_an_address_is_a_fault(models: str, expected: str) -> None:
    assert faults(models) == [expected]


def test_all_faults_are_told_at_once() -> None:
    models = """\
models:
  - {id: m}
  - {id: llama, route: [{base_url: "http://x/1"}, {base_url: "http://x/2"}, {weight: 1}]}
"""
    routing = SPLIT.replace("0.6", "60") + "  - {endpoint: 'http://a:8000', models: [llama]}\n"
    told = faults(models, routing)
    assert [fault.split(": ")[1] for fault in told] == [
        "models[0]",
        "models[1].route[1]",
        "models[1].route[2].base_url",
        "routing_parameter.local_fraction",
        "remote_deployment[1].models[0]",
    ]


def test_a_model_that_only_waits_is_no_fault() -> None:
    assert make("models: [{id: llama, base_url: '${URL}'}]").configured["llama"] == {}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1, 1), {"0": "1/3", "1": "1/3", "2": "1/3"}),
        ((0.6, 0.4, 0), {"0": "3/5", "1": "2/5", "2": "0"}),
        ((0, 1, 3), {"2": "3/4", "1": "1/4", "0": "0"}),
        ((0, 1, 0), {"1": "1", "0": "0", "2": "0"}),
        ((0.1, 0.2, 0.3), {"2": "1/2", "1": "1/3", "0": "1/6"}),
    ],
)
def test_without_routing_yaml_the_weights_are_those_of_models_yaml(
    weights: tuple[float, ...], expected: Mapping[str, str]
) -> None:
    route = ", ".join(f"{{name: '{n}', base_url: 'http://{n}', weight: {w}}}" for n, w in enumerate(weights))
    found = shares(f"models: [{{id: llama, route: [{route}]}}]")
    assert {name: str(share) for name, share in found.items()} == expected
    assert list(found) == list(expected)


def test_no_weight_at_all_is_a_fault() -> None:
    assert faults("models: [{id: llama, base_url: 'http://x', route: [{weight: 0}]}]") == [
        "models.yaml:1:51: models[0].route: every deployment of llama has the weight 0, expected at least one above 0"
    ]
    assert faults(BOXES, claim("http://a:8000", more=", weight: 0")) == [
        (
            "routing.yaml:1:1: routing_strategy: fixed gives no deployment of llama a weight, expected at least one "
            "above 0"
        )
    ]


def test_no_weight_while_another_deployment_waits_is_a_fallback_that_serves() -> None:
    route = "[{base_url: 'http://x', weight: 0}, {base_url: '${URL}'}]"
    assert shares(f"models: [{{id: llama, route: {route}}}]") == {"x:80": 1}
