import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.scalars import resolve, surprise


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("NULL", None),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("+12", 12),
        ("-3", -3),
        ("0", 0),
        ("0o17", 15),
        ("0x1F", 31),
        ("0.6", 0.6),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("-1.5E-2", -0.015),
        ("-.inf", -math.inf),
        ("llama", "llama"),
        ("3.3-70b", "3.3-70b"),
        ("http://box:8000", "http://box:8000"),
        ("nULL", "nULL"),
        ("-", "-"),
        ("٣", "٣"),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_nan_is_a_number() -> None:
    value = resolve(".nan")
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("text", "reads_as"),
    [
        *((word, "true or false") for word in ("yes", "No", "ON", "off", "y", "N")),
        ("22:22", "base 60"),
        ("1:30:00.5", "base 60"),
        ("010", "octal"),
        ("-07", "octal"),
        ("08", "octal"),
        ("0b101", "binary"),
        ("-0x1F", "hexadecimal"),
        ("+0x_1F", "hexadecimal"),
        ("2024-08-06", "a date"),
        ("2024-08-06T10:00:00Z", "a date"),
        ("2024-08-06 10:00:00", "a date"),
        ("1_000", "underscores"),
        ("1_0.5", "underscores"),
        ("0x_1F", "underscores"),
        (".5_0", "underscores"),
        (".5_0e+3", "underscores"),
    ],
)
def test_what_yaml_1_1_reads_otherwise_is_a_surprise_with_advice(text: str, reads_as: str) -> None:
    advice = surprise(text)
    assert advice is not None
    assert reads_as in advice
    assert "quote it" in advice


@pytest.mark.parametrize("text", [".nan", ".inf", "-.Inf", "1e999", "9" * 5000])
def test_a_number_that_is_not_finite_is_a_surprise(text: str) -> None:
    assert surprise(text) == "expected a finite number"


def test_an_integer_beyond_64_bits_is_a_surprise() -> None:
    assert surprise(str(2**63)) == "expected a number of at most 64 bits"
    assert surprise(str(2**63 - 1)) is None
    assert surprise("0x" + "f" * 5000) == "expected a number of at most 64 bits"


@pytest.mark.parametrize(
    "text", ["", "llama-4", "true", "0", "0.5", "1e3", "0x1F", "host:8000", "yesterday", "2024-08", "q4_0", "__", "a_b"]
)
def test_the_rest_is_no_surprise(text: str) -> None:
    assert surprise(text) is None


def yaml_1_1(text: str) -> object:
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # the stubs say so
    return loader.construct_object(yaml.ScalarNode(tag, text))


NO_TEXT = dict(forms for each in yaml.SafeLoader.yaml_implicit_resolvers.values() for forms in each)
"""What YAML 1.1 reads as something else than text, by tag."""


@settings(max_examples=300)
@given(
    st.sampled_from(["bool", "int", "float", "timestamp"])
    .flatmap(lambda kind: st.from_regex(NO_TEXT[f"tag:yaml.org,2002:{kind}"]))
    .filter(lambda text: text == text.strip() and len(text) < 40)
)
def test_whatever_yaml_1_1_makes_a_different_value_of_is_a_surprise(text: str) -> None:
    try:
        old = yaml_1_1(text)
    except ValueError:
        return
    new = resolve(text)
    if not isinstance(old, str) and (old != new or type(old) is not type(new)):
        assert surprise(text) is not None
