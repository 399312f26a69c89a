"""The YAML in the docs is loaded: each block whose first line names a file, beside the models.yaml last shown."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import documents
from tests.config.loading import faults

DOCS = Path(__file__).parents[2] / "docs"
SHIPPED = (DOCS.parent / "config" / "models.yaml").read_text(encoding="utf-8")
BLOCK = re.compile(r"^( *)```(?:yaml|text)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

Example = tuple[str, str | None, str]
"""A models.yaml, a routing.yaml beside it, and the faults that are shown for them."""


def examples(page: str) -> Iterator[Example]:
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))]
    models = SHIPPED
    for block, following in zip(blocks, [*blocks[1:], ""], strict=True):
        heading = block.partition("\n")[0]
        shown = following.rstrip("\n") if heading.endswith(" with faults") else ""
        if heading.startswith("# models.yaml"):
            models = models if shown else block
            yield block, None, shown
        elif heading.startswith("# routing.yaml"):
            yield models, block, shown


def found(*pages: str) -> list[Example]:
    return [example for page in pages for example in examples(page)]


@pytest.mark.parametrize(("models", "routing", "shown"), found("configuration.md", "failover.md", "migration.md"))
def test_an_example_is_what_the_docs_say(models: str, routing: str | None, shown: str) -> None:
    assert "\n".join(faults(models, routing)) == shown


def test_the_examples_are_found() -> None:
    assert len(found("configuration.md")) == 15
    assert len(found("failover.md")) == 6
    assert len(found("migration.md")) == 5
    assert len([shown for _, _, shown in found("configuration.md") if shown]) == 2


def test_every_field_is_told() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    tables = [set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) for table in page.split("|---|---|---|---|\n")]
    kinds = [
        kind for kind in vars(documents).values() if isinstance(kind, type) and issubclass(kind, documents.Document)
    ]
    for kind in kinds:
        fields = set(kind.model_fields)
        assert len(fields) < 2 or any(fields <= table for table in tables), f"{kind.__name__} is not told of whole"
