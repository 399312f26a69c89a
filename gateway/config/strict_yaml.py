"""Strict YAML: bytes parsed into plain data with the position of every value, or into every fault.

The result is the JSON subset: mappings with text as keys, lists, text, numbers, booleans, null. Tags, merge keys, keys
that are not text or are duplicated, several documents, and what `scalars.py` calls a surprise are refused. An alias
repeats the value of its anchor, within limits.

A value with a fault is `Broken` in the data, so that later checks can skip it and find further faults. A fault quotes
no more of the file than a single value or key, and not even that where it could be a secret.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.config.compose import DEEPEST, Bad, Items, Mark, Node, Pairs, Scalar, UnreadableError, compose, decode
from gateway.config.faults import Fault
from gateway.config.scalars import resolve, surprise
from gateway.config.shown import Path, dotted, is_secret, shortened

MOST_VALUES = 1_000_000
_WORDS: dict[Path, frozenset[str]] = {("models", "rescue"): frozenset({"on", "off"})}
"""Words that are no surprise as values of these fields, by list and key: the field itself defines them."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands for a value that already has a fault; `text` is what was written, if it was a scalar."""

    text: str = field(default="", repr=False)


@dataclass(slots=True)
class Tree:
    """A file's data, and the position of everything in it; without a document the data is None."""

    file: str
    data: object = field(default=None, repr=False)
    keys: dict[Path, Mark] = field(default_factory=dict, repr=False)
    values: dict[Path, Mark] = field(default_factory=dict, repr=False)

    def fault(self, path: Path, message: str, *, at_key: bool = False) -> Fault:
        """Create a fault about a path, located at its value (or its key), or at the nearest parent that exists."""
        place = path
        while place and place not in self.values:
            place = place[:-1]
        marks = self.keys if at_key and place in self.keys else self.values
        line, column = marks.get(place, (0, 0))
        return Fault(self.file, line, column, dotted(path), message)

    def let_go(self) -> None:
        """Free the data in pieces: freeing it all at once would keep every other thread from running meanwhile."""
        for marks in (self.keys, self.values):
            while marks:
                marks.popitem()
        for held in self.data.values() if isinstance(self.data, dict) else ():
            while isinstance(held, list) and held:
                held.pop()
        self.data = None

    def at(self, path: Path) -> object:
        """Return the value at a path, or the first `Broken` value that the path leads through.

        Raises:
            LookupError: there is no such value.

        """
        value = self.data
        for step in path:
            match value:
                case Broken():
                    return value
                case list() if isinstance(step, int):
                    value = value[step]
                case dict():
                    value = value[step]
                case _:
                    raise LookupError(step)
        return value


def member(value: object, key: str) -> object:
    """Return a mapping's value; None where it has no such key, or is not a mapping."""
    return value.get(key) if isinstance(value, dict) else None


def items(value: object) -> list[object]:
    """Return a list's items; an empty list for any other value."""
    return value if isinstance(value, list) else []


def read_yaml(content: bytes, file: str) -> tuple[Tree, tuple[Fault, ...]]:
    """Parse a file; its data is `Broken` when it is not YAML. Never raises for what it reads."""
    tree = Tree(file)
    try:
        composed = compose(decode(content))
        expansion = _Expansion(tree)
        if composed.root is not None:
            tree.data = expansion.value(composed.root, ())
        if composed.extra:
            message = "found a second document, expected one: a line '---' starts a document"
            expansion.faults.append(Fault(file, *composed.extra, "", message))
    except UnreadableError as error:
        tree.data = Broken()
        return tree, (Fault(file, *error.mark, "", error.message),)
    nodes = composed.parts()
    del composed
    while nodes:  # freeing them all at once would keep every other thread from running
        nodes.pop()
    return tree, tuple(expansion.faults)


class _Expansion:
    """Turns nodes into data, following aliases; fills the tree's marks and collects faults."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._count = 0
        self.faults: list[Fault] = []

    def value(self, node: Node, path: Path) -> object:
        self._count += 1
        if self._count > MOST_VALUES or len(path) > DEEPEST:
            limits = f"{MOST_VALUES} values or {DEEPEST} levels"
            raise UnreadableError(node.mark, f"found more than {limits}, with its aliases followed")
        self._tree.values[path] = node.mark
        if isinstance(node, Scalar):
            return self._scalar(node, path)
        if isinstance(node, Items):
            return [self.value(item, (*path, place)) for place, item in enumerate(node.items)]
        if isinstance(node, Pairs):
            return dict(self._pairs(node, path))
        return self._broken(path, node.message)

    def _scalar(self, node: Scalar, path: Path) -> object:
        if not node.plain:
            return node.text
        if path and node.text in _WORDS.get((path[0], path[-1]), ()):
            return node.text
        advice = surprise(node.text)
        if advice is None:
            return resolve(node.text)
        written = "a hidden value" if is_secret(path) else shortened(node.text)
        return self._broken(path, f"found {written}, {advice}", node.text)

    def _pairs(self, node: Pairs, path: Path) -> Iterator[tuple[str, object]]:
        for key, item in node.pairs:
            name = key.text if isinstance(key, Scalar) else ""
            below = (*path, name)
            first = self._tree.keys.get(below)
            if (refusal := _refusal(key, path)) is not None:
                self.faults.append(Fault(self._tree.file, *key.mark, dotted(path), refusal))
            elif first is not None:
                again = f"found the key a second time, expected it once: the first is in line {first[0]}"
                self.faults.append(Fault(self._tree.file, *key.mark, dotted(below), again))
            else:
                self._tree.keys[below] = key.mark
                yield name, self.value(item, below)

    def _broken(self, path: Path, message: str, text: str = "") -> Broken:
        self.faults.append(self._tree.fault(path, message))
        return Broken(text)


def _refusal(key: Node, path: Path) -> str | None:
    if isinstance(key, Bad):
        return key.message
    if not isinstance(key, Scalar):
        return "found a list or a mapping as a key, expected text: quote it"
    if not key.plain:
        return None
    if key.text == "<<":
        return "found a merge key '<<', expected plain keys: write them out, or repeat a whole value by an alias"
    written = "a hidden key" if is_secret(path) else f"{shortened(key.text)} as a key"
    if (advice := surprise(key.text)) is not None:
        return f"found {written}, {advice}"
    return None if isinstance(resolve(key.text), str) else f"found {written}, expected text: quote it"
