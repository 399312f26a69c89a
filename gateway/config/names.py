"""Checks on names across both files: ids and aliases are unique, and models.yaml has all models of routing.yaml.

They work on the raw data, so that these faults are reported together with those of the schema.
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from gateway.config.faults import Fault, Suggestions
from gateway.config.shown import Path, dotted, shown
from gateway.config.strict_yaml import Broken, Tree, items, member


class Names(Struct, frozen=True):
    """The ids and aliases of a models.yaml, with the index of their model in its list; `faults` reports duplicates.

    `readable` is false when there is no list of models to take names from.
    """

    file: str
    models: Mapping[str, int]
    faults: tuple[Fault, ...]
    readable: bool

    @classmethod
    def of(cls, tree: Tree) -> "Names":
        """Collect the names."""
        places: dict[str, Path] = {}
        faults: list[Fault] = []
        for path, value in _given(tree):
            name = value.text if isinstance(value, Broken) else value
            if not isinstance(name, str) or not name:
                continue
            first = places.setdefault(name, path)
            if first != path and not isinstance(value, Broken):
                faults.append(tree.fault(path, f"found {shown(value, path)}, {_taken(tree, first)}"))
        models = {name: int(path[1]) for name, path in places.items()}
        return cls(tree.file, models, tuple(faults), isinstance(member(tree.data, "models"), list))

    def check(self, routing: Tree) -> Iterator[Fault]:
        """Yield the faults in the models that a routing.yaml lists."""
        known = Suggestions(self.written())
        for group in ("local_deployment", "remote_deployment"):
            for place, entry in enumerate(items(member(routing.data, group))):
                yield from self._check_entry(routing, items(member(entry, "models")), (group, place, "models"), known)

    def _check_entry(self, routing: Tree, listed: list[object], path: Path, known: Suggestions) -> Iterator[Fault]:
        seen: dict[str | int, Path] = {}
        for place, name in enumerate(listed):
            if not isinstance(name, str) or not name:
                continue
            here = (*path, place)
            model = self.models.get(name) if self.readable else name
            if model is None:
                offered = known.nearest(name) if type(name) is str else ""
                yield routing.fault(here, f"found {shown(name, here)}, expected a model of {self.file}{offered}")
            elif (first := seen.setdefault(model, here)) != here:
                yield routing.fault(here, f"found {shown(name, here)}, expected each model once: see {dotted(first)}")

    def written(self) -> Iterator[str]:
        """Yield the names that the file spells out, without those from variables."""
        return (name for name in self.models if type(name) is str)


def _taken(tree: Tree, path: Path) -> str:
    place = tree.fault(path, "")
    return f"expected a name of its own: {place.path} ({place.file}:{place.line}:{place.column}) has it"


def _given(tree: Tree) -> Iterator[tuple[Path, object]]:
    for place, entry in enumerate(items(member(tree.data, "models"))):
        yield ("models", place, "id"), member(entry, "id")
        for at, alias in enumerate(items(member(entry, "aliases"))):
            yield ("models", place, "aliases", at), alias
