"""Variables in a file's data: where an unset one is tolerated, and where it is a fault."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from gateway.config.environment import Interpolated, MalformedReferenceError, UnsetVariablesError, expand
from gateway.config.faults import Fault, Suggestions
from gateway.config.fields import Unset
from gateway.config.scalars import LONE_SURROGATE
from gateway.config.shown import Path
from gateway.config.strict_yaml import Broken, Tree

_ADDRESSES: Final = frozenset({"endpoint", "base_url"})
_KEYS: Final = frozenset({"api_key"})
_MAY_WAIT: Final = _ADDRESSES | _KEYS
_SHELLS: Final = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")


def interpolate(
    tree: Tree, variables: Mapping[str, str], suggested: Iterable[str]
) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """Expand the variables in every string of a tree's data, in place; return the faults, and the notices.

    `suggested` are names to offer for an unset variable. An address or a key with an unset variable becomes `Unset`,
    and so does an address that comes out empty.
    """
    walk = _Walk(tree, variables, Suggestions(suggested))
    tree.data = walk.value(tree.data, ())
    return tuple(walk.faults), tuple(walk.notices)


class _Walk:
    def __init__(self, tree: Tree, variables: Mapping[str, str], suggested: Suggestions) -> None:
        self._tree = tree
        self._variables = variables
        self._suggested = suggested
        self.faults: list[Fault] = []
        self.notices: list[Fault] = []

    def value(self, value: object, path: Path) -> object:
        match value:
            case dict():
                return {key: self.value(item, (*path, key)) for key, item in value.items()}
            case list():
                return [self.value(item, (*path, place)) for place, item in enumerate(value)]
            case str():
                return self._text(value, path)
            case _:
                return value

    def _text(self, text: str, path: Path) -> object:
        if _named(path, _KEYS) and _SHELLS.fullmatch(text):
            told = "found what looks like a variable and is sent as it stands: write ${NAME} for its value"
            self.notices.append(self._tree.fault(path, told))
        try:
            expanded = expand(text, self._variables)
        except MalformedReferenceError:
            return self._broken(path, "found a '${' that begins no ${NAME} or ${NAME:-default}: write $$ for a dollar")
        except UnsetVariablesError as error:
            return self._unset(text, path, error.variables)
        if not isinstance(expanded, Interpolated):
            return expanded
        if LONE_SURROGATE.search(expanded):
            return self._broken(path, f"found a value of {expanded.source} that is not UTF-8 text")
        return Unset(expanded.variables[0], text) if not expanded and _named(path, _ADDRESSES) else expanded

    def _unset(self, text: str, path: Path, variables: tuple[str, ...]) -> object:
        if _named(path, _MAY_WAIT):
            return Unset(variables[0], text if _named(path, _ADDRESSES) else "")
        for variable in variables:
            offered = self._suggested.nearest(variable)
            self._broken(path, f"found ${{{variable}}}, which is not set and has no default{offered}")
        return Broken()

    def _broken(self, path: Path, message: str) -> Broken:
        self.faults.append(self._tree.fault(path, message))
        return Broken()


def _named(path: Path, names: frozenset[str]) -> bool:
    return path != () and path[-1] in names and path[0] != "routing_parameter"
