import os
import sys
from asyncio import CancelledError
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.routing.contract import resolve
from gateway.routing.snapshot import Deployment
from gateway.routing.strategies import StrategyError
from tests.routing.guests import BAD_WEIGHTS, Answers, Asked, Group, Lazy, MuteError, PanicException, leaves, raises
from tests.routing.planning import ALIVE, BOXES, DEAD, SPLIT, faults, make, probe, serve, shares, snapshot, weights

GUESTS = "tests.routing.guests"
LISTED = SPLIT.removeprefix("routing_parameter: {local_fraction: 0.6}\n")


def named(strategy: str, parameters: str = "{}") -> str:
    return f"routing_strategy: {GUESTS}:{strategy}\nrouting_parameter: {parameters}\n{LISTED}"


def test_a_strategy_is_named_by_dotted_path() -> None:
    assert shares(BOXES, named("FirstLocal")) == {"a": 1, "b": 0, "cloud": 0}
    assert make(BOXES, named("FirstLocal")).routes["llama"].selection == "random"


def test_its_parameters_are_plain_data_and_checked() -> None:
    tiers = "{tiers: {fast: {names: [a, cloud], share: 2}, slow: {names: [b], share: 1.0}}}"
    assert {name: str(share) for name, share in shares(BOXES, named("Tiers", tiers)).items()} == {
        "a": "2/5",
        "cloud": "2/5",
        "b": "1/5",
    }
    assert make(BOXES, named("Tiers", tiers)).routes["llama"].selection == "smooth"


def test_its_parameters_may_be_strict() -> None:
    assert shares(BOXES, named("Strict", "{names: [b], nested: {x: {z: [1]}}}")) == {"b": 1, "a": 0, "cloud": 0}


def test_it_is_asked_with_the_usable_deployments_of_each_listed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asked, "calls", [])
    models = BOXES + "  - {id: other, base_url: 'http://a:8000'}\n"
    manager = serve(models, named("Asked"))
    assert Asked.calls == [(["a", "b"], ["cloud"])]
    probe(manager, a=DEAD)
    assert Asked.calls[1:] == [(["b"], ["cloud"])]
    probe(manager, cloud=DEAD, b=DEAD)
    assert Asked.calls[2:] == [(["b"], [])]
    assert set(weights(snapshot(manager).routes["llama"]).values()) == {snapshot(manager).routes["llama"].weights[0]}


def test_it_is_not_asked_when_nobody_that_is_listed_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asked, "calls", [])
    routing = f"routing_strategy: {GUESTS}:Asked\nlocal_deployment: [{{endpoint: '${{BOX}}', models: [llama]}}]"
    assert shares(BOXES, routing) == {"a": 1, "b": 0, "cloud": 0}
    assert Asked.calls == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fixd", "found 'fixd', expected one of fixed, round_robin or package.module:ClassName, did you mean 'fixed'?"),
        ("x.y", "found 'x.y', expected one of fixed, round_robin or package.module:ClassName"),
        ("nowhere:X", "cannot import nowhere:X: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{GUESTS}:X", f"cannot import {GUESTS}:X: AttributeError: module '{GUESTS}' has no attribute 'X'"),
        (f"{GUESTS}:not_a_class", f"{GUESTS}:not_a_class is not a class with a method assign(self, local, remote)"),
        (f"{GUESTS}:NoAssign", f"{GUESTS}:NoAssign is not a class with a method assign(self, local, remote)"),
        (f"{GUESTS}:RaisesWhenMade", f"{GUESTS}:RaisesWhenMade cannot be made: RuntimeError: no licence"),
        (f"{GUESTS}:Wants", f"found {GUESTS}:Wants.selection ['dice'], expected 'random' or 'smooth'"),
        (f"{GUESTS}:RaisesOnSelection", f"{GUESTS}:RaisesOnSelection cannot be made: RuntimeError: undecided"),
        (
            f"{GUESTS}:BadParameters",
            f"found {GUESTS}:BadParameters.Parameters dict[str, int], expected a pydantic model",
        ),
        (
            f"{GUESTS}:PlainParameters",
            f"found {GUESTS}:PlainParameters.Parameters <class 'dict'>, expected a pydantic model",
        ),
        (f"{GUESTS}:RaisesOnParameters", f"{GUESTS}:RaisesOnParameters refuses its parameters: KeyError: 'lost'"),
    ],
)
def test_one_that_cannot_be_had_is_a_fault(name: str, expected: str) -> None:
    parameters = "routing_parameter: {name: x}\n" if "OnParameters" in name else ""
    assert faults(BOXES, f"routing_strategy: {name}\n{parameters}{LISTED}") == [
        f"routing.yaml:1:19: routing_strategy: {expected}"
    ]


@pytest.mark.parametrize("ending", ["raise OSError('no such model')", "import sys; sys.exit(3)"])
def test_a_module_that_fails_is_a_fault_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mended_{len(ending)}"
    module = tmp_path / f"{name}.py"
    module.write_text(f"{ending}\n", encoding="utf-8")
    routing = f"routing_strategy: {name}:Own\n{LISTED}"
    assert f"cannot import {name}:Own: " in faults(BOXES, routing)[0]
    module.write_text(
        "class Own:\n    def assign(self, local, remote):\n        return {remote[0]: 1}  # mended\n", "utf-8"
    )
    assert shares(BOXES, routing)["cloud"] == 1
    sys.modules.pop(name)


def test_a_module_that_was_not_there_is_found_once_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    routing = f"routing_strategy: written_late:Own\n{LISTED}"
    assert "No module named 'written_late'" in faults(BOXES, routing)[0]
    before = tmp_path.stat().st_mtime_ns
    (tmp_path / "written_late.py").write_text(
        "class Own:\n    def assign(self, local, remote):\n        return {remote[0]: 1}\n", "utf-8"
    )
    os.utime(tmp_path, ns=(before, before))  # as if both had been in one tick of the file system's clock
    assert shares(BOXES, routing)["cloud"] == 1
    sys.modules.pop("written_late")


def test_parameters_are_faults_at_their_places() -> None:
    parameters = "{tiers: {fast: {names: [a, b, c, d], share: 0}, slow: {names: a}, other: 1}, limit: many}"
    told = faults(BOXES, named("Tiers", parameters))
    assert [fault.split(": ", 1)[1] for fault in told] == [
        "routing_parameter.tiers.fast.names: found a list, list should have at most 3 items after validation, not 4",
        "routing_parameter.tiers.fast.share: found 0, expected a number above 0",
        f"routing_parameter.tiers.slow.share: missing, {GUESTS}:Tiers needs it",
        "routing_parameter.tiers.slow.names: found 'a', expected a list",
        "routing_parameter.tiers.other: found 1, expected a mapping",
        "routing_parameter.limit: found 'many', expected a whole number",
        "routing_parameter.limit: found 'many', expected true or false",
    ]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            "{nams: [a], names: [a]}",
            f"routing_parameter.nams: unknown key 'nams' for {GUESTS}:Strict, did you mean 'names'?",
        ),
        ("{names: [a, 7]}", "routing_parameter.names[1]: found 7, expected text"),
        (
            "{names: [a], nested: {one: {two: ['${N}']}}}",
            "routing_parameter.nested.one.two[0]: found the value of ${N}, expected a whole number",
        ),
        ("{}", f"routing_parameter.names: missing, {GUESTS}:Strict needs it"),
    ],
)
def test_unknown_and_missing_parameters_are_named(parameters: str, expected: str) -> None:
    [fault] = faults(BOXES, named("Strict", parameters), N="canary")
    assert fault.endswith(f": {expected}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("canary-1", "found the value of ${S}, expected one of fixed, round_robin or package.module:ClassName"),
        ("canary-" * 9, "found the value of ${S}, expected one of fixed, round_robin or package.module:ClassName"),
        (
            "canary.sub:Strategy",
            "cannot import the value of ${S}: ModuleNotFoundError: No module named 'the value of ${S}'",
        ),
        (f"{GUESTS}:GUESTS", "cannot import the value of ${S}: AttributeError: module 'the value of ${S}"),
    ],
)
def test_a_name_out_of_a_variable_is_not_shown(name: str, expected: str) -> None:
    [fault] = faults(BOXES, f"routing_strategy: ${{S}}\n{LISTED}", S=name)
    assert fault.startswith(f"routing.yaml:1:19: routing_strategy: {expected}")
    assert "canary" not in fault
    assert "GUESTS" not in fault


def test_a_name_out_of_a_variable_names_a_strategy() -> None:
    assert make(BOXES, f"routing_strategy: '${{S}}'\n{LISTED}", S="round_robin").strategy.name == "round_robin"
    assert make(BOXES, f"routing_strategy: '${{S:-}}'\n{LISTED}").strategy.name == "fixed"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("plain-text", "a hidden value does not begin with t-"),
        ("'${TOKEN}'", "the value of ${TOKEN} does not begin with t-"),
        ("tiny", "a hidden value is too little"),
        ("'${PIN}'", "the value of ${PIN} does not begin with t-"),
    ],
)
def test_its_own_messages_show_no_secret(token: str, expected: str) -> None:
    [fault] = faults(BOXES, named("Tiers", f"{{tiers: {{}}, token: {token}}}"), TOKEN="canary-12", PIN="'31337'")
    assert fault.endswith(f": routing_parameter.token: {expected}")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda *_: None, " returned NoneType, expected a mapping of deployments to weights"),
        (lambda *groups: list(groups), " returned list, expected a mapping of deployments to weights"),
        (lambda *_: {"a": 1}, " returned 'a', expected only deployments it was given"),
        (lambda *_: {None: 1}, " returned None, expected only deployments it was given"),
        (lambda *_: Lazy(), " raised OSError: asleep"),
        (lambda *_: 1 / 0, " raised ZeroDivisionError: division by zero"),
        (leaves, " raised SystemExit: 3 are too many"),
        (raises(PanicException("unwrapped")), " raised PanicException: unwrapped"),
        (raises(CancelledError("its own")), " raised CancelledError: its own"),
        (raises(MuteError(lambda: 1 / 0)), " raised MuteError: its message cannot be read"),
        (raises(MuteError(dict)), " raised MuteError: its message cannot be read"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[Group, Group], object], expected: str
) -> None:
    monkeypatch.setattr(Answers, "answer", staticmethod(answer))
    assert faults(BOXES, named("Answers")) == [
        f"routing.yaml:1:19: routing_strategy: {GUESTS}:Answers.assign for llama{expected}"
    ]


def test_an_interrupt_is_no_fault_of_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "answer", staticmethod(raises(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        faults(BOXES, named("Answers"))


def test_a_deployment_of_another_model_is_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Deployment] = []

    def first_of_all(local: Group, remote: Group) -> dict[Deployment, int]:
        seen.extend((*local, *remote))
        return {seen[0]: 1}

    monkeypatch.setattr(Answers, "answer", staticmethod(first_of_all))
    routing = named("Answers") + "  - {endpoint: 'http://c:8000', models: [other]}\n"
    [fault] = faults(BOXES + "  - {id: other, base_url: 'http://c:8000'}\n", routing)
    assert (
        "assign for other returned <a local 1 of 'llama' at http://a:8000>, expected only deployments it was" in fault
    )


@pytest.mark.parametrize("weight", BAD_WEIGHTS, ids=repr)
def test_a_bad_weight_is_a_fault(monkeypatch: pytest.MonkeyPatch, weight: object) -> None:
    monkeypatch.setattr(Answers, "answer", staticmethod(lambda local, _: {local[1]: weight}))
    [fault] = faults(BOXES, named("Answers"))
    assert fault.endswith(f".assign for llama gave b the weight {weight!r}, expected a finite number of at least 0")


@pytest.mark.parametrize("answer", [{}, {"a": 0}, {"a": 0.0, "cloud": 0}])
def test_no_weight_is_a_fault(monkeypatch: pytest.MonkeyPatch, answer: dict[str, float]) -> None:
    def by_name(local: Group, remote: Group) -> dict[object, float]:
        return {each: answer[each.name] for each in (*local, *remote) if each.name in answer}

    monkeypatch.setattr(Answers, "answer", staticmethod(by_name))
    assert faults(BOXES, named("Answers")) == [
        (
            f"routing.yaml:1:19: routing_strategy: {GUESTS}:Answers gives no deployment of llama a weight, expected at "
            "least one above 0"
        )
    ]


def test_every_model_that_it_fails_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "answer", staticmethod(lambda local, _: {local[0]: -1}))
    models = BOXES + "  - {id: other, base_url: 'http://a:8000'}\n"
    routing = named("Answers").replace("models: [llama]", "models: [llama, other]")
    assert [fault.split(" for ")[1].split()[0] for fault in faults(models, routing)] == ["llama", "other"]


def test_a_failure_over_a_dead_box_shows_no_secret_either() -> None:
    tiers = "{tiers: {all: {names: [a, b, cloud], share: 1}}, token: '${TOKEN}'}"
    manager = serve(BOXES, named("Tagged", tiers), TOKEN="t-canary")
    [change] = probe(manager, b=DEAD)
    assert change is not None
    assert change.problem == (
        f"{GUESTS}:Tagged.assign for llama raised LookupError: the value of ${{TOKEN}}: b is gone"
    )
    assert "canary" not in repr(make(BOXES, named("Tagged", tiers), TOKEN="t-canary"))


def test_a_strategy_names_itself() -> None:
    assert repr(resolve("fixed", {})) == "<fixed random>"
    assert repr(resolve(f"{GUESTS}:Asked", {})) == f"<{GUESTS}:Asked random>"


def test_an_error_is_all_its_problems() -> None:
    with pytest.raises(StrategyError, match=r"^unknown key 'a', round_robin takes none; unknown key 'b', "):
        resolve("round_robin", {"a": 1, "b": ALIVE})
