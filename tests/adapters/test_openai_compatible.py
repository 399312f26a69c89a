import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.adapters.openai_compatible import (
    OPERATIONS,
    Address,
    UnreplaceableModelError,
    authorization,
    replace_model,
    replace_read_model,
    with_usage,
)

ESCAPED = r"\u006d\u006F\u0064e\u006c"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://box:8000", "http://box:8000/v1/chat/completions"),
        ("http://box:8000/", "http://box:8000/v1/chat/completions"),
        ("http://box:8000/v1", "http://box:8000/v1/chat/completions"),
        ("https://host/compat/v1/", "https://host/compat/v1/chat/completions"),
        ("https://host/openai", "https://host/openai/chat/completions"),
        ("HTTPS://Host:443/Openai", "https://host/Openai/chat/completions"),
        ("http://host:443", "http://host:443/v1/chat/completions"),
        ("http://[2001:DB8::1]:80/v1", "http://[2001:db8::1]/v1/chat/completions"),
    ],
)
def test_a_base_url_without_a_path_gets_v1_and_one_with_a_path_stays(base: str, url: str) -> None:
    assert Address.of(base).operation_urls()["chat/completions"] == url


def test_every_operation_has_a_url() -> None:
    assert dict(Address.of("http://box").operation_urls()) == {
        "chat/completions": "http://box/v1/chat/completions",
        "completions": "http://box/v1/completions",
        "responses": "http://box/v1/responses",
        "embeddings": "http://box/v1/embeddings",
    }
    assert tuple(Address.of("http://box").operation_urls()) == OPERATIONS


@pytest.mark.parametrize(
    ("base", "identity", "host_port"),
    [
        ("http://box:8000/v1/", "http://box:8000", "box:8000"),
        ("http://box:8000", "http://box:8000", "box:8000"),
        ("https://Host/a/v1", "https://host/a", "host:443"),
        ("https://host/a//v1//", "https://host/a", "host:443"),
        ("http://host/v1/a", "http://host/v1/a", "host:80"),
        ("http://host/av1", "http://host/av1", "host:80"),
        ("http://[::1]", "http://[::1]", "[::1]:80"),
    ],
)
def test_an_endpoint_is_known_by_origin_and_path_without_v1(base: str, identity: str, host_port: str) -> None:
    assert (Address.of(base).identity, Address.of(base).host_port) == (identity, host_port)


def test_health_is_asked_for_at_the_origin() -> None:
    assert Address.of("https://host/compat/v1").health_url(None) == "https://host/health"
    assert Address.of("https://host/compat/v1").health_url("/v1/models") == "https://host/v1/models"


def test_a_key_is_a_bearer_token() -> None:
    assert authorization("key") == {"Authorization": "Bearer key"}
    assert authorization(None) == {}


def test_the_models_name_is_replaced_and_nothing_else() -> None:
    body = b'{ "stream":true,\n\t"model" : "llama" ,"messages":[{"role":"user","content":"\\"model\\": 1"}],"n":1.0 }'
    assert replace_model(body, "meta/llama") == body.replace(b'"llama"', b'"meta/llama"')
    assert replace_read_model(body, "meta/llama") == body.replace(b'"llama"', b'"meta/llama"')


@pytest.mark.parametrize("other", ["model", ESCAPED])
def test_a_model_that_was_read_but_stands_there_twice_is_refused(other: str) -> None:
    with pytest.raises(UnreplaceableModelError, match=r"^model: expected it once, as text$"):
        replace_read_model(f'{{"model":"m","{other}":"n"}}'.encode(), "other")


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m"}',
        ' \r\n{"model"\t:\n"m"} ',
        '{"x":{"model":"no"},"model":"m","y":[{"model":"no","model":"no"}]}',
        '{"tools":[{"model":{"type":"string"}}],"model":"m"}',
        r'{"\"model":"no","model":"m","\\\"model":"no"}',
        r'{"a":"\"model\":\"no\"","model":"m"}',
        r'{"a":"\\","model":"m"}',
        r'{"model":"m","MODEL":"no","models":"no","amodel":"no","mode\u006c\u0000":"no"}',
        '{"model":"m","a":1,"a":2}',
        f'{{"{ESCAPED}":"m"}}',
        f'{{"a":{{"{ESCAPED}":"no"}},"{ESCAPED}":"m","b":"\\u006dodel"}}',
        r'{"model":"m","a":"\ud83d\ude00 \u00e9 é 😀"}',
    ],
)
@pytest.mark.parametrize("replace", [replace_model, replace_read_model])
def test_the_top_level_model_is_found_wherever_it_stands(replace: Callable[[bytes, str], bytes], body: str) -> None:
    assert replace(body.encode(), "other") == body.replace('"m"', '"other"').encode()


@pytest.mark.parametrize("value", [r"\"", r"a\\", r"\u00e9", "é😀", "", " ", r"\/", "x" * 1000])
def test_whatever_it_was_called_is_replaced(value: str) -> None:
    assert replace_model(f'{{"model":"{value}","n":1}}'.encode(), "m") == b'{"model":"m","n":1}'


@pytest.mark.parametrize("model", ['a"b', "back\\slash", "é😀", "tab\t", "\x00", "a/b:c@d"])
def test_whatever_it_is_to_be_called_is_written_as_json(model: str) -> None:
    assert json.loads(replace_model(b'{"model":"m"}', model)) == {"model": model}


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","model":"m"}',
        '{"model":"m","model":"n"}',
        f'{{"model":"m","a":{{"model":"x"}},"{ESCAPED}":"n"}}',
        '{"model":1,"model":"m"}',
        '{"model":"m","model":1}',
        '{"model":"m","model":{"model":"x"}}',
        '{"a":{"model":"m"}}',
        '{"model":null}',
        "{}",
        "[]",
        '"model"',
    ],
)
def test_a_model_twice_or_none_is_refused(body: str) -> None:
    with pytest.raises(UnreplaceableModelError, match=r"^model: expected it once, as text$"):
        replace_model(body.encode(), "other")


@pytest.mark.parametrize("body", [b"", b'{"model":"m"', b'{"model":"m"} x', b'{"model":"m",}', b"\xff"])
def test_what_is_no_json_is_refused_without_a_word_of_it(body: bytes) -> None:
    with pytest.raises(UnreplaceableModelError, match=r"^the body is not valid JSON, or nested too deeply$"):
        replace_model(body, "other")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UnreplaceableModelError, match="nested too deeply"):
        replace_model(b'{"model":"m","a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "other")


def test_bytes_that_are_no_text_pass_as_they_are() -> None:
    assert replace_model(b'{"\xff":1,"model":"m","a":"\xfe"}', "n") == b'{"\xff":1,"model":"n","a":"\xfe"}'


def test_texts_called_model_are_no_fields() -> None:
    body = b'{"a":["model","model" ],"model":"model","b":"model"}'
    assert replace_model(body, "n") == b'{"a":["model","model" ],"model":"n","b":"model"}'
    body = b'{"a":["model","\\u006dodel"],"mode\\u006C":"model","b":"model"}'
    assert replace_model(body, "n") == b'{"a":["model","\\u006dodel"],"mode\\u006C":"n","b":"model"}'
    with pytest.raises(UnreplaceableModelError, match="found over 10000 fields or texts called model, expected fewer"):
        replace_model(b'{"model":"m","a":[' + b'"model",' * 10_000 + b"1]}", "n")


def test_models_without_number_are_refused_early() -> None:
    body = b'{"model":"m","a":[' + b",".join([b'{"model":"x"}'] * 10_000) + b"]}"
    with pytest.raises(UnreplaceableModelError, match="found over 10000 fields or texts called model, expected fewer"):
        replace_model(body, "n")
    body = b'{"model":"m","a":[' + b",".join([b'{"model":"x"}'] * 9_999) + b"]}"
    assert replace_model(body, "n") == body.replace(b'"m"', b'"n"')


@pytest.mark.parametrize(
    "more",
    [
        '"{}":1'.format("x" * (1 << 20)),
        r'"{}":1'.format(r"\n" * (1 << 20)),
        '"a":"{}"'.format('"model":"x",'.replace('"', r"\"") * (1 << 16)),
        ",".join(f'"{number}":1' for number in range(1 << 16)),
        '"a":[{}]'.format(",".join(['""'] * (1 << 18))),
    ],
    ids=["name", "escaped name", "text", "fields", "items"],
)
def test_a_large_body_is_read_as_any_other(more: str) -> None:
    body = f'{{{more},"model":"m"}}'.encode()
    assert replace_model(body, "n") == body[:-4] + b'"n"}'


NAMES = st.one_of(
    st.sampled_from(["model", "models", "mode", "Model", '"model', "model\\", "stream"]), st.text(max_size=8)
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES.filter(lambda name: name != "model"), VALUES, max_size=6)


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """Write JSON with spaces and escapes wherever they may stand."""
    space = draw(st.sampled_from(["", "", " ", "\n\t", "\r\n  "]))
    if isinstance(value, Mapping):
        fields = [f"{draw(written(name))}{space}:{space}{draw(written(item))}" for name, item in value.items()]
        return f"{space}{{{space}{','.join(fields)}{space}}}{space}"
    if isinstance(value, list):
        return f"{space}[{(space + ',').join(draw(written(item)) for item in value)}{space}]{space}"
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = draw(st.sampled_from([json.dumps(value), json.dumps(value, ensure_ascii=False)]))
    if draw(st.booleans()) and value.isascii() and value.isalpha():
        spellings = [(letter, f"\\u{ord(letter):04x}", f"\\u{ord(letter):04X}") for letter in value]
        escaped = f'"{"".join(draw(st.sampled_from(each)) for each in spellings)}"'
    return escaped


@pytest.mark.exhaustive
@given(st.data(), OBJECTS, TEXT, TEXT)
def test_of_any_object_only_the_models_value_changes(
    data: st.DataObject, others: dict[str, Any], old: str, new: str
) -> None:
    place = data.draw(st.integers(0, len(others)))
    fields = [(name, data.draw(written(value))) for name, value in others.items()]
    before, value, after = fields[:place], data.draw(written(old)), fields[place:]
    name = data.draw(written("model"))
    head = "{" + "".join(f"{data.draw(written(key))}:{text}," for key, text in before) + f"{name} :\t"
    tail = "".join(f",{data.draw(written(key))}:{text}" for key, text in after) + "}\n"
    changed = replace_model((head + value + tail).encode(), new).decode()
    assert replace_read_model((head + value + tail).encode(), new).decode() == changed
    assert changed.startswith(head)
    assert changed.endswith(tail)
    assert json.loads(changed) == {**others, "model": new}
    assert json.loads(head + value + tail) == {**others, "model": old}


@pytest.mark.exhaustive
@given(
    OBJECTS,
    st.lists(VALUES, max_size=2).filter(lambda values: [type(value) for value in values] != [str]),
    st.integers(0, 6),
)
@example({}, ["a", "b"], 0)
def test_a_model_that_does_not_stand_there_once_as_text_is_not_replaced(
    others: dict[str, Any], values: list[Any], place: int
) -> None:
    fields = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in others.items()]
    fields[place:place] = [f'"model":{json.dumps(value)}' for value in values]
    body = f"{{{','.join(fields)}}}".encode()
    with pytest.raises(UnreplaceableModelError):
        replace_model(body, "n")


@pytest.mark.parametrize("end", ["", " ", "\r\n\t "])
@pytest.mark.parametrize("others", [{}, {"messages": [{"content": "}"}]}, {"x": {"y": {}}}, {"é": "ü"}])
def test_the_usage_of_a_stream_is_asked_for_beside_everything_else(others: dict[str, Any], end: str) -> None:
    body = json.dumps({"model": "m", **others}, ensure_ascii=False) + end
    asked = with_usage(body.encode())
    assert json.loads(asked) == {"model": "m", **others, "stream_options": {"include_usage": True}}
    assert asked.startswith(body.rstrip()[:-1].encode())
