import pytest

from gateway.routing.clients import Clients
from tests.config.loading import faults
from tests.routing.planning import BOXES, make, serve

TWO = "clients:\n  - {name: alice, api_key: canary-a}\n  - {name: ci, api_key: '${CI}'}\n"


def clients(routing: str, **environ: str) -> Clients | None:
    return make(BOXES, routing, **environ).settings.clients


def settings(old: str, new: str, **environ: str) -> list[str]:
    changes = serve(BOXES, old, **environ).adopt(make(BOXES, new, **environ))
    assert changes is not None
    assert "canary" not in f"{changes!r}"
    return changes.as_dict()["settings"]


def test_a_client_is_known_by_its_key() -> None:
    found = clients(TWO, CI="canary-b")
    assert found is not None
    assert (found.names, found.name_of("canary-a"), found.name_of("canary-b")) == (("alice", "ci"), "alice", "ci")
    assert [found.name_of(key) for key in ("", "canary", "canary-a ", "CANARY-A")] == [None] * 4
    assert "canary" not in repr(found)


def test_without_a_list_everybody_may_ask() -> None:
    assert clients("timeout: 2\n") is None


@pytest.mark.parametrize("environ", [{}, {"CI": ""}])
def test_a_client_whose_variable_is_not_set_is_not_let_in(environ: dict[str, str]) -> None:
    plan = make(BOXES, TWO, **environ)
    assert plan.settings.clients is not None
    assert (plan.settings.clients.names, plan.settings.clients.name_of("")) == (("alice",), None)
    told = "routing.yaml:3:25: clients[1].api_key: CI is not set or empty, so the client ci is not let in"
    assert [str(notice) for notice in plan.notices] == [told]


def test_where_no_client_has_a_key_nobody_is_let_in() -> None:
    found = clients("clients: [{name: ci, api_key: '${CI}'}]")
    assert found is not None
    assert (found.names, found.name_of("")) == ((), None)


@pytest.mark.parametrize(
    ("routing", "told"),
    [
        ("clients:\n", "1:9: clients: found nothing, expected at least one entry, or leave it out"),
        ("clients: []\n", "1:10: clients: found an empty list, expected a list of at least 1"),
        (
            "clients: ${X:-}\n",
            "1:10: clients: found the empty value of ${X}, expected at least one entry, or leave it out",
        ),
        ("clients: [{name: a}]\n", "1:11: clients[0].api_key: missing, and it has no default"),
        (
            "clients: [{name: a, api_key: }]\n",
            "1:30: clients[0].api_key: found no key, expected the one that this client sends",
        ),
        (
            "clients: [{name: a, api_key: ''}]\n",
            "1:30: clients[0].api_key: found no key, expected the one that this client sends",
        ),
        ("clients: [{name: '', api_key: x}]\n", "1:18: clients[0].name: found '', expected printable text"),
    ],
)
def test_nobody_is_let_in_by_what_may_be_a_mistake(routing: str, told: str) -> None:
    assert f"config/routing.yaml:{told}" in faults(routing=routing)[0]


def test_who_may_ask_is_a_setting_that_changes() -> None:
    one = "clients: [{name: alice, api_key: canary-a}]\n"
    assert settings("timeout: 2\n", TWO, CI="canary-b") == ["clients: everybody -> alice, ci"]
    assert settings(TWO, one, CI="canary-b") == ["clients: alice, ci -> alice"]
    assert settings(one, one.replace("-a", "-c")) == ["clients: the key of alice changed"]
    assert settings(one, "timeout: 2\n") == ["clients: alice -> everybody"]
    assert settings(one, "clients: [{name: bob, api_key: canary-a}]\n") == ["clients: alice -> bob"]
    assert settings(one, "clients: [{name: ci, api_key: '${CI}'}]\n") == ["clients: alice -> nobody"]
