import msgspec
import pytest

from gateway.routing.diff import Change, Diff, diff
from gateway.routing.manager import RoutingManager
from gateway.routing.outline import Outline
from tests.routing.planning import BOXES, SPLIT, make, serve

OWN = "routing_strategy: tests.routing.guests:Open\n"


def lines(old: tuple[str, str | None], new: tuple[str, str | None], **environ: str) -> dict[str, list[str]]:
    manager = serve(*old, **environ)
    changes = manager.adopt(make(*new, **environ))
    assert changes is not None
    assert "canary" not in f"{changes!r} {changes}"
    return changes.as_dict()


def test_the_first_configuration_adds_everything() -> None:
    changes = RoutingManager().adopt(make(BOXES, SPLIT))
    assert changes is not None
    assert changes.as_dict() == {
        "models_added": ["llama"],
        "deployments_added": [
            "llama/cloud: remote at https://cloud.example, weight 0.4",
            "llama/a: local at http://a:8000, weight 0.3",
            "llama/b: local at http://b:8000, weight 0.3",
        ],
    }


def test_models_and_deployments_come_and_go() -> None:
    other = "  - {id: other, base_url: 'http://other'}\n"
    assert lines((BOXES, None), (BOXES + other, None)) == {
        "models_added": ["other"],
        "deployments_added": ["other/other:80: unlisted at http://other, weight 1"],
    }
    assert lines((BOXES + other, None), (BOXES, None)) == {
        "models_removed": ["other"],
        "deployments_removed": ["other/other:80"],
    }


def test_weights_go_from_to() -> None:
    assert lines((BOXES, SPLIT), (BOXES, SPLIT.replace("0.6", "0.8"))) == {
        "weights": ["llama/a: 0.3 -> 0.4", "llama/b: 0.3 -> 0.4", "llama/cloud: 0.4 -> 0.2"],
        "settings": ["routing_parameter.local_fraction: 0.6 -> 0.8"],
    }
    assert lines((BOXES, None), (BOXES.replace("kind", "weight: 1.0001, kind"), None))["weights"] == [
        "llama/cloud: 0.333333 -> 0.333356",
        "llama/a: 0.333333 -> 0.333322",
        "llama/b: 0.333333 -> 0.333322",
    ]


def test_what_is_particular_to_a_deployment_is_told() -> None:
    changed = BOXES.replace("https://cloud.example/v1", "https://cloud.example/v2").replace(
        "kind: llama", "kind: gemini"
    )
    changed = changed.replace("canary-cloud", "canary-other, provider_model_id: big").replace("b:8000", "b:9000")
    assert lines((BOXES, None), (changed, None)) == {
        "deployments_changed": [
            "llama/b: base_url http://b:8000/v1 -> http://b:9000/v1",
            "llama/cloud: base_url https://cloud.example/v1 -> https://cloud.example/v2",
            "llama/cloud: kind llama -> gemini",
            "llama/cloud: provider_model_id llama -> big",
            "llama/cloud: api_key changed",
        ]
    }


def test_a_health_path_and_a_group_are_told() -> None:
    assert lines((BOXES, SPLIT), (BOXES, SPLIT.replace("[llama]}", "[llama], health_path: /up}", 1))) == {
        "deployments_changed": ["llama/a: health at http://a:8000/health -> http://a:8000/up"]
    }
    assert lines((BOXES, None), (BOXES, SPLIT.replace("health_check: 5\n", "")))["deployments_changed"] == [
        "llama/cloud: group unlisted -> remote",
        "llama/a: group unlisted -> local",
        "llama/b: group unlisted -> local",
    ]


def test_what_is_said_of_a_model_is_told() -> None:
    changed = BOXES.replace("[l3]", "[l3, l4]") + "    context_length: 1\n    pricing: {prompt: 2}\n"
    assert lines((BOXES, None), (changed, None)) == {
        "models_changed": ["llama: aliases l3 -> l3, l4", "llama: context_length, pricing changed"]
    }
    assert lines((changed, None), (changed.replace("aliases: [l3, l4]", "owned_by: me"), None)) == {
        "models_changed": ["llama: aliases l3, l4 -> none", "llama: owned_by changed"]
    }


def test_a_models_rescue_is_told() -> None:
    never = BOXES + "    rescue: off\n"
    assert lines((BOXES, None), (never, None)) == {"models_changed": ["llama: rescue on -> off"]}
    assert lines((never, None), (never.replace("off", "replay"), None)) == {
        "models_changed": ["llama: rescue off -> replay"]
    }


def written(**deployments: float) -> str:
    """Write a model's deployments, by name, with their weights."""
    each = (f"{{name: {name}, base_url: 'http://{name}', weight: {weight}}}" for name, weight in deployments.items())
    return f"models: [{{id: m, route: [{', '.join(each)}]}}]"


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (written(main=1, dear=0, cheap=0), ["m: tried in the order main, dear, cheap"]),
        (written(new=0, dear=0, cheap=0, main=1), ["m: tried in the order main, new, dear, cheap"]),
        (written(cheap=0, main=1, dear=0), None),
        (written(other=0, main=1, new=1, dear=0), None),
        (written(main=1, cheap=0, dear=3), None),
    ],
)
def test_another_order_of_those_that_stay_is_told_where_no_weight_tells_it(new: str, told: list[str] | None) -> None:
    old = written(main=1, cheap=0, dear=0)
    assert lines((old, None), (new, None)).get("models_changed") == told


def test_settings_have_the_names_of_routing_yaml() -> None:
    new = """\
timeout: 3.5
health_check: {interval: 1, unhealthy_after: 2, healthy_after: 3}
logging: {output: x, level: error}
"""
    assert lines((BOXES, None), (BOXES, new)) == {
        "settings": [
            "routing.yaml: added",
            "timeout: 2 -> 3.5",
            "health_check.interval: 0 -> 1",
            "health_check.unhealthy_after: 1 -> 2",
            "health_check.healthy_after: 1 -> 3",
            "logging.output: stdout -> x",
            "logging.level: info -> error",
        ]
    }
    assert lines((BOXES, "timeout: 2"), (BOXES, None)) == {"settings": ["routing.yaml: removed"]}


def test_parameters_are_told_without_secrets() -> None:
    old = OWN + "routing_parameter: {a: {b: [1]}, token: canary-1, from: '${T}'}"
    new = OWN + "routing_parameter: {a: {b: [1, x]}, token: canary-2, to: 0.5}"
    assert lines((BOXES, old), (BOXES, new), T="canary-3") == {
        "settings": [
            'routing_parameter.a: {"b":[1]} -> {"b":[1,"x"]}',
            "routing_parameter.from: ${T} -> none",
            "routing_parameter.to: none -> 0.5",
        ]
    }
    assert lines((BOXES, None), (BOXES, OWN))["settings"] == [
        "routing.yaml: added",
        "routing_strategy: fixed -> tests.routing.guests:Open",
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("1", "true", "1 -> true"),
        ("[{a: 0}]", "[{a: false}]", '[{"a":0}] -> [{"a":false}]'),
        ("1", "1.0", "1 -> 1.0"),
        ("1", "'1'", '1 -> "1"'),
    ],
)
def test_another_type_of_a_parameter_is_a_change(old: str, new: str, told: str) -> None:
    parameters = OWN + "routing_parameter: {x: "
    assert lines((BOXES, f"{parameters}{old}}}"), (BOXES, f"{parameters}{new}}}")) == {
        "settings": [f"routing_parameter.x: {told}"]
    }


def test_another_order_of_parameters_is_none() -> None:
    manager = serve(BOXES, OWN + "routing_parameter: {x: {a: 1, b: 2}, z: 3}")
    assert manager.adopt(make(BOXES, OWN + "routing_parameter: {z: 3, x: {b: 2, a: 1}}")) is None


KEYED = BOXES.replace("canary-cloud", "'${CLOUD_KEY}'")


def test_who_becomes_a_fallback_is_told() -> None:
    all_local = SPLIT.replace("0.6", "1.0")
    assert lines((BOXES, SPLIT), (BOXES, all_local)) == {
        "weights": ["llama/a: 0.3 -> 0.5", "llama/b: 0.3 -> 0.5", "llama/cloud: 0.4 -> 0"],
        "fallback": ["llama/cloud: becomes a fallback"],
        "settings": ["routing_parameter.local_fraction: 0.6 -> 1"],
    }
    assert lines((BOXES, all_local), (BOXES, SPLIT))["fallback"] == ["llama/cloud: is no fallback any more"]
    spare = BOXES + "      - {name: spare, base_url: 'http://spare', weight: 0}\n"
    assert lines((BOXES, None), (spare, None)) == {
        "deployments_added": ["llama/spare: unlisted at http://spare, weight 0"],
        "fallback": ["llama/spare: a fallback"],
    }
    assert lines((spare, None), (BOXES, None)) == {"deployments_removed": ["llama/spare"]}


def test_who_stays_a_fallback_or_inactive_is_not_told_again() -> None:
    waiting = BOXES + "      - {name: spare, base_url: 'http://spare', weight: 0}\n      - {base_url: '${BOX}'}\n"
    assert list(lines((waiting, None), (waiting, "timeout: 3"))) == ["settings"]


def test_what_waits_for_a_variable_is_told_with_its_name() -> None:
    with_key, without = make(KEYED, None, CLOUD_KEY="canary-1").outline, make(KEYED).outline
    weights = ["llama/a: 0.333333 -> 0.5", "llama/b: 0.333333 -> 0.5"]
    assert diff(with_key, without).as_dict() == {
        "deployments_removed": ["llama/cloud"],
        "weights": weights,
        "inactive": ["llama/cloud: becomes inactive, CLOUD_KEY is not set"],
    }
    assert diff(without, with_key).as_dict() == {
        "deployments_added": ["llama/cloud: unlisted at https://cloud.example, weight 0.333333"],
        "weights": ["llama/a: 0.5 -> 0.333333", "llama/b: 0.5 -> 0.333333"],
        "active": ["llama/cloud: becomes active"],
    }


def test_what_waits_from_its_first_day_and_what_waits_no_more() -> None:
    box = "      - {base_url: '${BOX}'}\n"
    assert lines((BOXES, None), (BOXES + box, None)) == {"inactive": ["llama/${BOX}: inactive, BOX is not set"]}
    assert lines((BOXES + box, None), (BOXES, None)) == {"active": ["llama/${BOX}: waits for BOX no more"]}
    new = "  - {id: other, base_url: '${BOX}'}\n"
    assert lines((BOXES, None), (BOXES + new, None)) == {
        "models_added": ["other"],
        "inactive": ["other/${BOX}: inactive, BOX is not set"],
    }


def test_a_key_that_comes_or_goes_is_told_as_that() -> None:
    without = BOXES.replace(", api_key: canary-cloud", "")
    assert lines((BOXES, None), (without, None)) == {"deployments_changed": ["llama/cloud: api_key removed"]}
    assert lines((without, None), (BOXES, None)) == {"deployments_changed": ["llama/cloud: api_key added"]}


def test_without_keys_a_changed_one_is_not_seen() -> None:
    old, new = make(BOXES).outline, make(BOXES.replace("canary-cloud", "canary-other")).outline
    assert diff(old, new) == Diff()
    assert diff(old, new, frozenset({("llama", "cloud")})) == Diff(
        (Change("deployments_changed", "api_key changed", "llama", "cloud"),)
    )


def test_an_outline_survives_json_and_holds_no_key() -> None:
    models = BOXES + "    timeouts: {idle: 0.1}\n    pricing: {prompt: 1, completion: 0.5}\n"
    routing = OWN + "routing_parameter: {a: {b: [1, x]}, token: canary-1, from: '${T}'}"
    made = make(models, routing, T="canary-2").outline
    text = msgspec.json.encode(made)
    assert b"canary" not in text
    back = msgspec.json.decode(text, type=Outline)
    assert diff(made, back) == diff(back, made) == Diff()
    assert back == made


def test_prices_are_told_where_a_deployment_has_its_own() -> None:
    priced = BOXES.replace("api_key: canary-cloud", "api_key: canary-cloud, pricing: {prompt: 2}")
    assert lines((BOXES, SPLIT), (priced, SPLIT)) == {
        "deployments_changed": ["llama/cloud: pricing unknown -> prompt 2, input_cache_read 2"]
    }
    model = BOXES + "    pricing: {prompt: 3}\n"
    assert lines((BOXES, SPLIT), (model, SPLIT)) == {"models_changed": ["llama: pricing changed"]}
    paid = SPLIT.replace('"http://a:8000", models: [llama]', '"http://a:8000", models: [llama], pricing: {request: 1}')
    assert lines((BOXES, SPLIT), (BOXES, paid)) == {"deployments_changed": ["llama/a: pricing free -> request 1"]}


def test_the_ledger_is_told_without_its_password() -> None:
    kept = SPLIT + "ledger: {url: 'postgresql://me:canary@host/ledger', retention_days: 7}\n"
    told = {"settings": ["ledger.url: none -> postgresql://host/ledger", "ledger.retention_days: 30 -> 7"]}
    assert lines((BOXES, SPLIT), (BOXES, kept)) == told
    other = kept.replace("canary", "other")
    assert lines((BOXES, kept), (BOXES, other)) == {}


def test_a_weight_that_changes_little_is_told_as_two_numbers() -> None:
    models = (
        'models:\n  - id: llama\n    route:\n      - {name: a, base_url: "http://a:8000"}\n'
        '      - {name: b, base_url: "http://b:8000", weight: %s}\n'
    )
    changes = serve(models % 2).adopt(make(models % 2.000001))
    assert changes is not None
    for line in changes.as_dict()["weights"]:
        was, now = line.partition(": ")[2].split(" -> ")
        assert was != now
