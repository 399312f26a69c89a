"""Where a ledger is: both forms, and nothing of a password anywhere."""

import pytest

from gateway.config.documents import RoutingDocument
from gateway.config.environment import Interpolated
from gateway.config.ledger_place import BadPlaceError, Place
from tests.config.loading import MODELS, faults, load

CANARY = "canary"


def routing(text: str = "", **environ: str) -> RoutingDocument:
    loaded = load(MODELS, text or "timeout: 2", environ=environ)
    assert loaded.faults == ()
    assert loaded.routing is not None
    return loaded.routing


def told(ledger: str, **environ: str) -> list[str]:
    return faults(MODELS, f"ledger: {ledger}", environ=environ)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///ledger.db", "ledger.db"),
        ("sqlite:///data/a b#1.db", "data/a b#1.db"),
        ("sqlite:////srv/ledger.db", "/srv/ledger.db"),
    ],
)
def test_a_sqlite_file(url: str, path: str) -> None:
    place = Place.of(url)
    assert (place.kind, place.path, str(place), place.secrets()) == ("sqlite", path, url, frozenset())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://keeper:canary@db.example:5432/ledger", "postgresql://db.example:5432/ledger"),
        ("postgres://keeper:canary@db.example/ledger?sslmode=require", "postgresql://db.example/ledger"),
        ("postgresql://a:canary@one:1,two:2/ledger", "postgresql://one:1,two:2/ledger"),
        ("postgresql:///ledger?host=/run/postgresql&password=canary", "postgresql:///ledger"),
        ("postgresql://", "postgresql://"),
    ],
)
def test_a_postgresql_server(url: str, shown: str) -> None:
    place = Place.of(url)
    assert (place.kind, place.path, str(place), place.url.get_secret_value()) == ("postgresql", "", shown, url)
    assert CANARY not in repr(place)


def test_secrets_are_known_in_every_form() -> None:
    url = "postgresql://keeper:a%20canary@host/ledger?password=other%20canary&sslpassword=third&user=me"
    assert Place.of(url).secrets() == {url, "a%20canary", "a canary", "other canary", "third"}
    assert Place.of("postgresql://keeper@host/ledger").secrets() == {"postgresql://keeper@host/ledger"}


def test_what_came_out_of_variables_is_shown_by_their_names() -> None:
    for url in ("sqlite:///canary.db", "postgresql://canary@host/canary"):
        assert str(Place.of(Interpolated(url, ("LEDGER",)))) == "${LEDGER}"


@pytest.mark.parametrize(
    "url",
    [
        "canary",
        "mysql://canary@host/x",
        "sqlite://canary.db",
        "sqlite:canary.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///canary/",
        "sqlite:///canary.db?mode=ro",
        "sqlite:///can\x07ary.db",
        " sqlite:///canary.db",
        "postgresql://me:canary@host:port/x",
        "postgresql://me:canary@host:0/x",
        "postgresql://me:canary@[host/x",
        "postgresql://me:can ary@host/x",
        "postgresql://me:canary@host/x#y",
    ],
)
def test_what_is_no_place_is_refused_unseen(url: str) -> None:
    with pytest.raises(BadPlaceError, match=r"^found .* expected ") as caught:
        Place.of(url)
    assert "ary" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_there_is_no_ledger_unless_it_is_asked_for() -> None:
    for text in (
        "",
        "ledger:",
        "ledger: {}",
        "ledger: {url: '${LEDGER:-}'}",
        "ledger: {url: '${EMPTY}'}",
        "ledger: {url: }",
    ):
        ledger = routing(text, EMPTY="").ledger
        assert (ledger.url, ledger.retention_days) == (None, 30.0)


def test_a_ledger_is_read() -> None:
    ledger = routing("ledger: {url: '${LEDGER}', retention_days: '${DAYS}'}", LEDGER="sqlite:///x.db", DAYS="7").ledger
    assert ledger.url is not None
    assert (ledger.url.path, str(ledger.url), ledger.retention_days) == ("x.db", "${LEDGER}", 7.0)


@pytest.mark.parametrize(
    ("ledger", "message"),
    [
        ("sqlite:///x.db", "1:9: ledger: found a hidden value, expected a mapping"),
        ("{url: 3}", "1:15: ledger.url: found 3, expected a URL such as sqlite:///ledger.db"),
        ("{url: [x]}", "1:15: ledger.url: found a list, expected a URL such as sqlite:///ledger.db"),
        (
            "{url: mysql://canary@host}",
            "1:15: ledger.url: found a URL of another kind, expected sqlite:///ledger.db or ",
        ),
        ("{url: '${NONE}'}", "1:15: ledger.url: found ${NONE}, which is not set and has no default"),
        ("{retention_days: -1}", "1:26: ledger.retention_days: found -1, expected a number of at least 0"),
        ("{retention_days: .inf}", "1:26: ledger.retention_days: found .inf, expected a finite number"),
        ("{retention_days: 36501}", "found 36501, expected a number of at most 36500"),
        ("{ulr: x}", "1:10: ledger.ulr: unknown key 'ulr', did you mean 'url'?"),
    ],
)
def test_a_bad_ledger_is_told_with_its_place(ledger: str, message: str) -> None:
    (fault,) = told(ledger)
    assert message in fault.replace("found 'sqlite:///x.db'", "found a hidden value")
    assert CANARY not in fault
