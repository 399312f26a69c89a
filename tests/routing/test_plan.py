import pytest

from gateway.config.faults import ConfigError, Fault
from gateway.config.load import parse
from gateway.config.sources import Sources
from gateway.routing.plan import plan
from gateway.routing.weighing import Standing
from tests.routing.planning import BOXES, DEAD, FILES, SPLIT, deployments, faults, make, probe, serve, snapshot

GUESTS = "tests.routing.guests"
PARAMETERS = ["routing_parameter.selection", "routing_parameter.loca"]
NAMS = "routing_parameter.nams[0].a"
STRICT = ["routing_parameter.names", "routing_parameter.nams"]


def test_faults_of_the_files_and_of_the_strategy_are_told_at_once() -> None:
    told = faults(BOXES.replace("kind: llama", "kind: lama"), SPLIT.replace("0.6", "6"))
    assert [fault.split(": ")[1] for fault in told] == ["models[0].route[2].kind", "routing_parameter.local_fraction"]


def test_a_strategy_is_not_judged_by_parameters_of_a_file_that_is_bad_elsewhere() -> None:
    own = "routing_strategy: tests.routing.guests:Strict\nrouting_parameter: {names: [a]}\ntimeout: -1\n"
    assert [fault.split(": ")[1] for fault in faults(BOXES, own)] == ["timeout"]


@pytest.mark.parametrize(
    ("routing", "paths"),
    [
        ("routing_parameter: {local_fraction: lots}\ntimeoutt: 2\n", ["routing_parameter.local_fraction", "timeoutt"]),
        ("timeoutt: 2\nrouting_parameter: {selection: on, loca: 1}\n", ["timeoutt", *PARAMETERS]),
        ("timeout: -1\nrouting_strategy: fixd\n", ["timeout", "routing_strategy"]),
        ("timeout: -1\nrouting_strategy: ${NONE:-}\nrouting_parameter: ${NONE:-}\n", ["timeout"]),
        ("routing_strategy: 5\nrouting_parameter: {local_fraction: 5}\n", ["routing_strategy"]),
        ("routing_strategy: on\nrouting_parameter: {local_fraction: 5}\n", ["routing_strategy"]),
        ("timeout: -1\nrouting_parameter: [local_fraction]\n", ["timeout", "routing_parameter"]),
        ("timeout: [-1\nrouting_parameter: {local_fraction: 5}\n", [""]),
        (f"routing_strategy: {GUESTS}:Strict\nrouting_parameter: {{nams: [{{a: on}}]}}\n", [NAMS]),
        (f"routing_strategy: {GUESTS}:Strict\nrouting_parameter: {{nams: [a]}}\nx: 1\n", [*STRICT, "x"]),
    ],
)
def test_parameters_are_judged_in_a_file_that_is_bad_elsewhere(routing: str, paths: list[str]) -> None:
    """They used to be judged once all else was well."""
    assert [fault.path for fault in found(routing)] == paths


def found(routing: str) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        make(BOXES, routing)
    return caught.value.faults


@pytest.mark.parametrize("nothing", ["", "${NONE:-}"])
def test_an_empty_strategy_and_empty_parameters_are_as_if_they_were_not_there(nothing: str) -> None:
    written = f"routing_strategy: ${{NONE:-}}\nrouting_parameter: {nothing}\n"
    assert make(BOXES, SPLIT.replace("routing_parameter: {local_fraction: 0.6}\n", written)).strategy.name == "fixed"


def test_without_models_there_is_no_plan() -> None:
    with pytest.raises(ConfigError, match="not found, expected the list of models there"):
        plan(parse(Sources(None, None), FILES, {}), "digest")


def test_strategy_and_matching_faults_are_told_in_the_order_of_the_files() -> None:
    routing = SPLIT.replace("0.6", "6") + "  - {endpoint: 'http://a:8000', models: [llama]}\n"
    assert [fault.split(": ")[0] for fault in faults(BOXES + "  - {id: nowhere}\n", routing)] == [
        "models.yaml:9:5",
        "routing.yaml:1:37",
        "routing.yaml:8:42",
    ]


def test_a_plan_says_what_it_read() -> None:
    made = make(BOXES, SPLIT)
    assert made.digest == "digest"
    assert made.split == {"llama"}
    assert set(made.catalogue.endpoints) == {"http://a:8000", "http://b:8000", "https://cloud.example"}
    assert made.documents[0].models[0].id == "llama"


def test_a_route_that_nothing_of_is_down_is_the_one_of_the_plan() -> None:
    made = make(BOXES, SPLIT)
    everywhere = frozenset(deployment.endpoint.identity for deployment in deployments(made).values())
    assert made.weighing(Standing(frozenset({"http://elsewhere"}))).route("llama") is made.routes["llama"]
    assert made.weighing(Standing(everywhere)).route("llama") is made.routes["llama"]


def test_models_of_one_box_share_its_fate() -> None:
    manager = serve(BOXES + "  - {id: other, route: [{base_url: 'http://a:8000'}, {base_url: 'http://c'}]}\n", SPLIT)
    probe(manager, a=DEAD)
    assert {model.id: snapshot(manager).routes[model.id].weights[-1] for model in snapshot(manager).models} == {
        "llama": 0,
        "other": 0,
    }
