"""Checks on the fallbacks of all models: each is a model of the file, there are no cycles, and chains are short.

They work on the raw data, so that these faults are reported together with those of the schema.
"""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Final

from gateway.config.faults import Fault, Suggestions
from gateway.config.names import Names
from gateway.config.shown import Path, dotted, shown
from gateway.config.strict_yaml import Tree, items, member

LONGEST_CHAIN: Final = 3

_Edges = dict[int, dict[int, Path]]
"""For each model, by its index in the list: the indices of its fallbacks, and the path where each is named."""


def check_fallbacks(tree: Tree, names: Names) -> Iterator[Fault]:
    """Yield the faults in the fallbacks of a models.yaml."""
    edges: _Edges = {}
    known = Suggestions(names.written())
    for path, name in _named(tree):
        model = int(path[1])
        target = names.models.get(name)
        if target is None:
            told = f"expected a model of this file{known.nearest(name) if type(name) is str else ''}"
        elif target == model:
            told = "expected another model than this one"
        elif (first := edges.setdefault(model, {}).setdefault(target, path)) != path:
            told = f"expected each model once: see {dotted(first)}"
        else:
            continue
        yield tree.fault(path, f"found {shown(name, path)}, {told}")
    yield from _rings(tree, edges)
    yield from _long_chains(tree, edges)


def _named(tree: Tree) -> Iterator[tuple[Path, str]]:
    for place, entry in enumerate(items(member(tree.data, "models"))):
        for at, name in enumerate(items(member(entry, "fallbacks"))):
            if isinstance(name, str) and name:
                yield ("models", place, "fallbacks", at), name


def _rings(tree: Tree, edges: _Edges) -> Iterator[Fault]:
    """Report each cycle at its last model; cycles that share a model with it are reported once it is fixed."""
    while ring := _ring(edges):
        last = ring.index(max(ring))
        ring = [*ring[last:], *ring[:last]]
        path = edges[ring[0]][ring[1]]
        for model in ring:
            edges[model].clear()
        yield tree.fault(path, f"found {_shown(tree, path)}, which leads back here: {_through(tree, [*ring, ring[0]])}")


def _ring(edges: Mapping[int, Mapping[int, Path]]) -> list[int]:
    """Return the models of one cycle, each followed by the one that it falls back to; empty if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        backwards: list[int] = error.args[1]
        return backwards[:0:-1]
    return []


def _long_chains(tree: Tree, edges: _Edges) -> Iterator[Fault]:
    """Report each chain that is one fallback too long, where it begins; chains that lead into it are not reported."""
    chains: dict[int, list[int]] = {}
    for model in TopologicalSorter(edges).static_order():
        longest = max((chains[target] for target in edges.get(model, ())), key=len, default=[])
        chains[model] = [model, *longest[: LONGEST_CHAIN + 1]]
    for targets in edges.values():
        for target, path in targets.items():
            if len(chains[target]) == LONGEST_CHAIN + 1:
                through = _through(tree, chains[target])
                told = f"found {_shown(tree, path)}, expected a chain of at most {LONGEST_CHAIN} fallbacks: {through}"
                yield tree.fault(path, told)


def _through(tree: Tree, models: list[int]) -> str:
    paths: list[Path] = [("models", model, "id") for model in models]
    return " -> ".join(_shown(tree, path) for path in paths)


def _shown(tree: Tree, path: Path) -> str:
    return shown(tree.at(path), path)
