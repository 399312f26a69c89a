"""Whatever the files hold, `parse` answers, and every fault has a place inside its file."""

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.documents import ModelsDocument, RoutingDocument
from gateway.config.load import Loaded
from tests.config.loading import MODELS, content, load, split

BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

keys = st.sampled_from(
    [*RoutingDocument.model_fields, "models", "id", "aliases", "route", "base_url", "endpoint", "weight", "api_key"]
) | st.text(max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["llama", "${A}", "${A:-x}", "${B", "http://box", "$$", "yes", "vllm", "stdout", "${F:-0.6}", ""])
    | st.text(max_size=8)
    | st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | scalars, inner, max_size=5),
    max_leaves=25,
)
yamlish = st.text("abc: -[]{}&*!|>'\"%@`#\n\t~?,0123${}<", max_size=60)


def check(loaded: Loaded, models: str | bytes, routing: str | bytes) -> None:
    texts = {"config/models.yaml": models, "config/routing.yaml": routing}
    for fault in loaded.faults:
        text = content(texts[fault.file]) or b""
        lines = BREAK.split(text.decode("utf-8-sig", errors="replace"))
        assert 0 <= fault.line <= len(lines)
        assert (fault.column == 0) is (fault.line == 0)
        if fault.line:
            assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1
        assert "\n" not in str(fault)
    assert (loaded.models is None) <= bool(loaded.faults)
    assert isinstance(loaded.models, ModelsDocument | None)
    assert isinstance(loaded.routing, RoutingDocument | None)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    check(load(data, data), data, data)


@given(st.text(max_size=60) | yamlish)
def test_any_text(text: str) -> None:
    data = text.encode(errors="surrogatepass")
    check(load(data, data), data, data)


@pytest.mark.exhaustive
@given(values, values)
def test_any_structure(models: object, routing: object) -> None:
    texts = [yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass") for value in (models, routing)]
    check(load(*texts, environ={"A": "canary"}), *texts)


@pytest.mark.exhaustive
@given(st.dictionaries(st.sampled_from([*RoutingDocument.model_fields]), values))
def test_any_values_of_known_keys(routing: object) -> None:
    text = yaml.safe_dump(routing, allow_unicode=True).encode(errors="surrogatepass")
    loaded = load(MODELS, text, environ={"A": "canary"})
    check(loaded, MODELS, text)
    assert not [fault for fault in loaded.faults if "canary" in str(fault)]


@given(yamlish)
def test_any_text_behind_a_good_file(text: str) -> None:
    models, routing = MODELS + text, split("") + text
    check(load(models, routing), models, routing)


@given(st.binary(max_size=60) | yamlish.map(str.encode))
def test_any_dot_env(data: bytes) -> None:
    loaded = load(env=data)
    lines = data.count(b"\n") + data.count(b"\r") + 1
    assert all(1 <= fault.line <= lines for fault in (*loaded.faults, *loaded.notices))


@given(st.integers(0, 400))
def test_any_half_of_a_file(end: int) -> None:
    models, routing = MODELS[:end], split("weight: 2\nname: box")[:end]
    check(load(models, routing), models, routing)


@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="\x85\u2028\u2029")))
def test_escaped_text_comes_back_through_a_whole_file(text: str) -> None:
    written = json.dumps(text.replace("$", "$$"), ensure_ascii=False)
    routing = load(routing=f"routing_parameter:\n  text: {written}\n").routing
    assert routing is not None
    assert routing.routing_parameter == {"text": text}
