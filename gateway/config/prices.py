"""The prices that costs are worked out from: each a number, in US dollars a token (`request`: a request).

Names and meaning are OpenRouter's (https://openrouter.ai/docs/api-reference/list-available-models). A `pricing` may
hold other names, which may hold any text: /v1/models shows them, and no cost comes of them.

Works on the raw data, so that these faults are found beside those of the schema; what is no price at all has its own.
"""

import re
from collections.abc import Iterator
from typing import Final

from gateway.config.faults import Fault
from gateway.config.fields import is_nothing
from gateway.config.shown import Path, shown
from gateway.config.strict_yaml import Tree

COUNTED: Final = frozenset({"prompt", "completion", "input_cache_read", "internal_reasoning", "request"})
HIGHEST: Final = 1_000
_DEAR: Final = 0.01
_NUMBER: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
_ENTRIES: Final = ("local_deployment", "remote_deployment")


def unreadable_prices(tree: Tree) -> Iterator[Fault]:
    """Give the faults of the counted prices that are text which is no number, or that no token can cost."""
    for path in _pricings(tree):
        pricing = tree.at(path)
        for name, value in pricing.items() if isinstance(pricing, dict) else ():
            at = (*path, name)
            if name not in COUNTED or is_nothing(value) or value == "":
                continue
            if isinstance(value, str) and not _NUMBER.fullmatch(value):
                told = "expected a price: a number of at least 0, or text that reads as one"
                yield tree.fault(at, f"found {shown(value, at)}, {told}")
            elif _number(value) > HIGHEST:
                yield tree.fault(at, f"found {shown(value, at)}, expected at most {HIGHEST} US dollars")


def uncounted_prices(tree: Tree) -> Iterator[Fault]:
    """Give notices about pricings that no cost comes of: `input` and `output` are what others call prices."""
    for path in _pricings(tree):
        pricing = tree.at(path)
        if isinstance(pricing, dict) and pricing and COUNTED.isdisjoint(pricing):
            yield tree.fault(path, f"no cost comes of these prices, expected one of {', '.join(sorted(COUNTED))}")


def dear_prices(tree: Tree) -> Iterator[Fault]:
    """Give notices about prices of a token that look like those of a million tokens."""
    for path in _pricings(tree):
        pricing = tree.at(path)
        for name, value in pricing.items() if isinstance(pricing, dict) else ():
            dollars = _number(value) if name in COUNTED - {"request"} and not is_nothing(value) else 0.0
            if _DEAR < dollars <= HIGHEST:
                at = (*path, name)
                told = f"found {shown(value, at)}, which is {dollars * 1_000_000:,.0f} US dollars a million tokens"
                yield tree.fault(at, f"{told}: prices are those of one token")


def _number(value: object) -> float:
    """Read a price; 0 where it is none."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else 0.0
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _pricings(tree: Tree) -> Iterator[Path]:
    document = tree.data if isinstance(tree.data, dict) else {}
    for place, model in _listed(document, "models"):
        yield from _pricing(model, ("models", place))
        for at, entry in _listed(model, "route"):
            yield from _pricing(entry, ("models", place, "route", at))
    for group in _ENTRIES:
        for place, entry in _listed(document, group):
            yield from _pricing(entry, (group, place))


def _listed(parent: dict[str, object], name: str) -> Iterator[tuple[int, dict[str, object]]]:
    items = parent.get(name)
    for place, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict):
            yield place, item


def _pricing(entry: dict[str, object], path: Path) -> Iterator[Path]:
    if "pricing" in entry:
        yield (*path, "pricing")
