import pytest

from tests.routing.planning import ONE_BOX, claim, deployments, keys, make, notices


def test_a_new_box_is_one_entry() -> None:
    made = make(ONE_BOX, claim("http://new:9000"))
    assert list(deployments(made)) == ["box:8000", "new:9000"]
    new = deployments(made)["new:9000"]
    assert (new.group, new.kind, new.served_model, new.key) == ("local", "vllm", "meta/llama", None)
    assert new.weight == 1
    assert new.urls["embeddings"] == "http://new:9000/v1/embeddings"
    assert new.endpoint.health_url == "http://new:9000/health"


def test_a_new_box_may_be_all_that_a_model_has() -> None:
    made = make("models: [{id: llama, provider: sglang}]", claim("http://new:9000"))
    assert [deployment.kind for deployment in deployments(made).values()] == ["sglang"]


def test_a_new_box_says_what_is_particular_to_it() -> None:
    more = ", name: own, kind: ollama, api_key: k, provider_model_id: 'l:8b', weight: 3, health_path: /up"
    new = deployments(make(ONE_BOX, claim("http://new:9000", more=more)))["own"]
    assert (new.kind, new.served_model, int(new.weight)) == ("ollama", "l:8b", 3)
    assert new.key is not None
    assert new.key.get_secret_value() == "k"
    assert new.headers == {"Authorization": "Bearer k"}
    assert new.endpoint.health_url == "http://new:9000/up"


def test_a_new_box_inherits_no_key_even_on_the_origin_of_the_models() -> None:
    models = "models: [{id: llama, base_url: 'http://box:8000/x', api_key: canary}]"
    assert keys(make(models, claim("http://box:8000/y", more=", name: other"))) == {"box:8000": "canary", "other": None}


def test_an_entry_that_claims_wins_in_all_that_it_says() -> None:
    more = ", name: own, kind: ollama, api_key: k, provider_model_id: 'l:8b', weight: 3, health_path: /up"
    [claimed] = deployments(make(ONE_BOX, claim("http://box:8000", more=more))).values()
    assert (claimed.name, claimed.kind, claimed.served_model, int(claimed.weight)) == ("own", "ollama", "l:8b", 3)
    assert claimed.headers == {"Authorization": "Bearer k"}
    assert claimed.endpoint.health_url == "http://box:8000/up"


def test_an_entry_that_claims_leaves_all_that_it_does_not_say() -> None:
    entry = "{kind: ollama, api_key: k, provider_model_id: 'l:8b', weight: 3, health_path: /up, name: own}"
    models = f"models: [{{id: llama, base_url: 'http://box:8000', route: [{entry}]}}]"
    [claimed] = deployments(make(models, claim("http://box:8000"))).values()
    assert (claimed.name, claimed.kind, claimed.served_model, int(claimed.weight)) == ("own", "ollama", "l:8b", 3)
    assert claimed.headers == {"Authorization": "Bearer k"}
    assert claimed.endpoint.health_url == "http://box:8000/up"
    assert claimed.group == "local"


@pytest.mark.parametrize(
    ("own", "inherits"),
    [
        ("http://box:8000/other", True),
        ("HTTP://BOX:8000", True),
        ("http://box:8001", False),
        ("https://box:8000", False),
        ("http://box", False),
        ("http://box.evil:8000", False),
    ],
)
def test_a_key_stays_on_its_origin(own: str, inherits: bool) -> None:  # noqa: FBT001 - a column
    route = f"[{{name: home}}, {{name: own, base_url: '{own}', provider_model_id: x}}]"
    models = f"models: [{{id: llama, base_url: 'http://box:8000', api_key: canary, route: {route}}}]"
    assert keys(make(models)) == {"home": "canary", "own": "canary" if inherits else None}


@pytest.mark.parametrize(("base", "own"), [("http://box:80", "http://box"), ("https://box", "https://box:443")])
def test_a_port_is_one_whether_written_or_not(base: str, own: str) -> None:
    models = f"models: [{{id: llama, base_url: '{base}', api_key: canary, route: [{{base_url: '{own}'}}]}}]"
    assert list(keys(make(models)).values()) == ["canary"]


def test_a_key_of_its_own_wins() -> None:
    models = "models: [{id: llama, base_url: 'http://box', api_key: canary, route: [{api_key: own}]}]"
    assert list(keys(make(models)).values()) == ["own"]


def test_a_model_without_a_base_url_has_no_origin() -> None:
    models = "models: [{id: llama, api_key: canary, route: [{base_url: 'http://box'}]}]"
    made = make(models)
    assert list(keys(made).values()) == [None]
    assert [str(notice) for notice in made.notices] == [
        (
            "models.yaml:1:31: models[0].api_key: nothing uses this key: no deployment without a key of its own is "
            "registered on the base_url's origin"
        )
    ]


def test_an_origin_that_waits_for_a_variable_is_not_the_models() -> None:
    route = "[{base_url: 'http://box'}, {name: waits}]"
    made = make(f"models: [{{id: llama, base_url: '${{U}}', api_key: canary, route: {route}}}]")
    assert keys(made) == {"box:80": None}


def test_a_key_that_nobody_is_sent_is_told_of() -> None:
    assert (
        "nothing uses this key"
        in notices("models: [{id: llama, base_url: 'http://x', api_key: canary, route: [{base_url: 'http://y'}]}]")[0]
    )
    own = "models: [{id: llama, base_url: 'http://x', api_key: canary, route: [{api_key: own}]}]"
    assert "nothing uses this key" in notices(own)[0]
    added = notices("models: [{id: llama, api_key: canary}]", claim("http://new:9000"))
    assert "nothing uses this key" in added[0]


def test_a_key_that_somebody_is_sent_is_not() -> None:
    assert notices("models: [{id: llama, base_url: 'http://x', api_key: canary}]") == []
