"""The prices that costs are computed from: numbers, in US dollars per token (`request`: per request).

Names and meaning are OpenRouter's (https://openrouter.ai/docs/api-reference/list-available-models). A `pricing` may
hold other names with any text: /v1/models shows them, and they count towards no cost.

The checks work on the raw data, so that these faults are reported together with those of the schema. A value that is
not a price at all has a fault of its own.
"""

import re
from collections.abc import Iterator
from typing import Final

from gateway.config.faults import Fault
from gateway.config.fields import is_nothing
from gateway.config.shown import Path, shown
from gateway.config.strict_yaml import Tree, items, member

COUNTED: Final = frozenset({"prompt", "completion", "input_cache_read", "internal_reasoning", "request"})
HIGHEST: Final = 1_000
_DEAR: Final = 0.01
_NUMBER: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")


def unreadable_prices(tree: Tree) -> Iterator[Fault]:
    """Yield a fault for each counted price that is text but not a number, or is above 1,000 US dollars."""
    for path, pricing in _pricings(tree):
        for name, value in pricing.items():
            at = (*path, name)
            if name not in COUNTED or is_nothing(value) or value == "":
                continue
            if isinstance(value, str) and not _NUMBER.fullmatch(value):
                told = "expected a price: a number of at least 0, or text that reads as one"
                yield tree.fault(at, f"found {shown(value, at)}, {told}")
            elif _number(value) > HIGHEST:
                yield tree.fault(at, f"found {shown(value, at)}, expected at most {HIGHEST} US dollars")


def odd_prices(tree: Tree) -> Iterator[Fault]:
    """Yield notices about pricings without a counted price, and about prices that look like those of a million tokens.

    Other products call their prices `input` and `output`.
    """
    for path, pricing in _pricings(tree):
        if pricing and COUNTED.isdisjoint(pricing):
            yield tree.fault(
                path, f"no cost can be computed from these prices, expected one of {', '.join(sorted(COUNTED))}"
            )
        for name, value in pricing.items():
            dollars = _number(value) if name in COUNTED - {"request"} and not is_nothing(value) else 0.0
            if _DEAR < dollars <= HIGHEST:
                at = (*path, name)
                told = f"found {shown(value, at)}, which is {dollars * 1_000_000:,.0f} US dollars a million tokens"
                yield tree.fault(at, f"{told}: prices are those of one token")


def _number(value: object) -> float:
    """Read a price; 0 where the value is not one."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else 0.0
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _pricings(tree: Tree) -> Iterator[tuple[Path, dict[str, object]]]:
    for path, entry in _entries(tree):
        pricing = member(entry, "pricing")
        if isinstance(pricing, dict):
            yield (*path, "pricing"), pricing


def _entries(tree: Tree) -> Iterator[tuple[Path, object]]:
    """Yield everything that may have a `pricing`, with its path."""
    for place, model in enumerate(items(member(tree.data, "models"))):
        yield ("models", place), model
        for at, entry in enumerate(items(member(model, "route"))):
            yield ("models", place, "route", at), entry
    for group in ("local_deployment", "remote_deployment"):
        for place, entry in enumerate(items(member(tree.data, group))):
            yield (group, place), entry
