from gateway.api.errors import unknown_model

MANY = [f"{family}-{size}b" for family in ("llama", "qwen", "gpt") for size in range(100)]


def test_among_many_models_only_those_that_begin_alike_are_compared() -> None:
    assert "did you mean 'qwen-7b'?" in unknown_model("Qwen_7b", MANY).message
    assert unknown_model("xlama-7b", MANY).message == "the model 'xlama-7b' is not served here"


def test_among_few_models_all_are_compared() -> None:
    assert "did you mean 'llama-7b'?" in unknown_model("xlama-7b", MANY[:100]).message
