import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.observe.render import Secrets, render, rfc3339

CANARY = "sk-canary-0123456789"


def parsed(record: Mapping[str, object], secrets: Secrets | None = None) -> dict[str, Any]:
    line = render(record, secrets or Secrets())
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    read = json.loads(line)
    assert isinstance(read, dict)
    return read


class Colour(Enum):
    RED = "red"


class Kind(StrEnum):
    LOCAL = "local"


class Code(IntEnum):
    OK = 200


@dataclass
class Endpoint:
    api_key: str


class Hostile(Mapping[str, object]):
    def __getitem__(self, _: str) -> object:
        raise KeyError

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError(CANARY)

    def __len__(self) -> int:
        return 1


def endless() -> list[object]:
    cycle: list[object] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text", "text"),
        (3, 3),
        (2**70, 2**70),
        (True, True),
        (None, None),
        (0.5, 0.5),
        (math.nan, None),
        (math.inf, None),
        ([1, ("a", None)], [1, ["a", None]]),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        (MappingProxyType({"weight": 0.6}), {"weight": 0.6}),
        ({1: "a", None: "b", ("x",): "c"}, {"1": "a", "None": "b", "['x']": "c"}),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Kind.LOCAL, "local"),
        (Code.OK, 200),
        (Colour.RED, "<Colour>"),
        (b"bytes", "<bytes>"),
        (Path("x"), f"<{type(Path()).__name__}>"),
        (Endpoint(CANARY), "<Endpoint>"),
        (ValueError(CANARY), "<ValueError>"),
        ("lone \ud800 surrogate", "lone \ud800 surrogate"),
        ("\u009b31m \u2028 \x1b[0m\r\n", "\u009b31m \u2028 \x1b[0m\r\n"),
    ],
)
def test_what_is_json_stays_and_the_rest_shows_its_type(value: object, shown: object) -> None:
    assert parsed({"value": value, "list": [value]}) == {"value": shown, "list": [shown]}


def test_time_is_written_as_rfc_3339() -> None:
    assert parsed({"time": 0.0, "event": "x"}) == {"time": "1970-01-01T00:00:00.000Z", "event": "x"}
    assert rfc3339(1_790_000_000.1239) == "2026-09-21T14:13:20.123Z"


def test_the_order_of_the_fields_is_the_records() -> None:
    assert list(parsed({"time": 1.0, "level": "info", "event": "x", "b": 1, "a": 2})) == [
        "time",
        "level",
        "event",
        "b",
        "a",
    ]


@pytest.mark.parametrize(("make", "error"), [(Hostile, "RuntimeError"), (endless, "RecursionError")])
def test_a_record_that_cannot_be_read_is_told_without_its_content(make: Callable[[], object], error: str) -> None:
    line = parsed({"time": 1.0, "event": f"about.{CANARY}", "value": make()}, Secrets.of({CANARY}))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "error", "event": "log.unrendered", "record": "about.***", "error": error}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.sets(st.text()),
    max_leaves=12,
)


@pytest.mark.exhaustive
@given(st.dictionaries(st.text(), json_values))
def test_any_record_is_one_line_of_json(record: dict[str, object]) -> None:
    assert set(parsed(record)) == set(record)


awkward = st.text(st.sampled_from("ab\"\\'\n/ %é\u2028\U0001f600"), min_size=8, max_size=12)


@pytest.mark.exhaustive
@given(awkward, st.text(max_size=5), st.text(max_size=5))
def test_no_line_contains_a_secret(secret: str, before: str, after: str) -> None:
    text = before + secret + after
    shown = parsed({"event": "x", "text": text, "deep": [{"a": [text]}], "repr": repr(text)}, Secrets.of({secret}))
    assert secret not in shown["text"]
    assert secret not in shown["deep"][0]["a"][0]
    assert "***" in shown["repr"]


def test_a_secret_is_masked_in_values_and_in_nested_keys_but_not_in_the_records_own_names() -> None:
    secrets = Secrets.of({CANARY, "deployment"})
    shown = parsed({"deployment": "deployment", "url": f"http://x/?key={CANARY}", "by": {CANARY: [1]}}, secrets)
    assert shown == {"deployment": "***", "url": "http://x/?key=***", "by": {"***": [1]}}


def test_a_number_that_looks_like_a_secret_leaves_the_line_intact() -> None:
    assert parsed({"bytes": 12345678, "key": "12345678"}, Secrets.of({"12345678"})) == {"bytes": 12345678, "key": "***"}


def test_a_secret_within_another_leaves_no_rest() -> None:
    assert Secrets.of({CANARY, f"{CANARY}-long"}).redact(f"{CANARY} {CANARY}-long") == "*** ***"


def test_short_strings_are_no_secrets() -> None:
    assert Secrets.of({"EMPTY", "1234567", ""}).redact("EMPTY and 1234567") == "EMPTY and 1234567"


def test_a_quoted_or_escaped_secret_is_masked() -> None:
    secret = 'a b"c\\d+é/'
    assert Secrets.of({secret}).redact(f"{secret!r} a%20b%22c%5Cd%2B%C3%A9%2F") == "'***' ***"


def test_secrets_do_not_show_themselves() -> None:
    assert CANARY not in repr(Secrets.of({CANARY}))
