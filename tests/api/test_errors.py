import re
from pathlib import Path

import gateway
from gateway.api.errors import unknown_model

MANY = [f"{family}-{size}b" for family in ("llama", "qwen", "gpt") for size in range(100)]


def test_among_many_models_only_those_that_begin_alike_are_compared() -> None:
    assert "did you mean 'qwen-7b'?" in unknown_model("Qwen_7b", MANY).message
    assert unknown_model("xlama-7b", MANY).message == "the model 'xlama-7b' is not served here"


def test_among_few_models_all_are_compared() -> None:
    assert "did you mean 'llama-7b'?" in unknown_model("xlama-7b", MANY[:100]).message


def test_every_code_is_told() -> None:
    package = Path(gateway.__file__).parent
    sources = "".join(file.read_text() for file in package.rglob("*.py") if "simulator" not in file.parts)
    codes = set(re.findall(r'\bcode="(\w+)"', sources))
    for place in re.findall(r'\bcode"?(?: = |:)(.*)', sources):
        codes |= set(re.findall(r'"([a-z]+(?:_[a-z]+)+)"', place))
    page = (package.parent / "docs" / "failover.md").read_text()
    table = page.partition("Its `code` is one of these:")[2].partition("\n## ")[0]
    told = {code for row in re.findall(r"^\| (.+?) \|", table, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)}
    assert told == codes
