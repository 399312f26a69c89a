"""YAML text composed into nodes that keep their positions.

libyaml's events are composed here and not by PyYAML: its composer is recursive C code, which deep nesting crashes, and
it cannot distinguish an explicit tag from an implied one. A problem that leaves the rest readable becomes a `Bad` node
or the document's `extra`; any other raises `UnreadableError`. No message quotes the text.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import cast

import yaml
from msgspec import Struct
from yaml.reader import Reader

from gateway.config.scalars import LONE_SURROGATE

Mark = tuple[int, int]
"""Line and column, both counted from 1."""

DEEPEST = 32

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_LINE_BREAK = "\r\n|[\n\r\x85\u2028\u2029]"
_TAB = "found a tab, expected spaces: YAML is indented with spaces"
_BEHIND = "found text after '|' or '>', expected it in the lines below, indented: or quote the value"
_NESTED = f"found more than {DEEPEST} levels of nesting"
_ADVICE = (
    ("tab character", False, _TAB),
    ("cannot start any token", False, "found a character that cannot start a value: quote the value"),
    (
        "mapping values are not allowed",
        False,
        "found a second ': ' or wrong indentation, expected one 'key: value' a line: quote the value, or indent it",
    ),
    ("',' or ']'", True, "found a list that is not closed or goes wrong, expected ',' or ']': quote a ${VAR} in it"),
    ("',' or '}'", True, "found a mapping that is not closed or goes wrong, expected ',' or '}': quote a ${VAR} in it"),
    ("unexpected end of stream", True, "found a quote that is not closed"),
    ("could not find expected ':'", True, "found a line without ': ', expected 'key: value'"),
    ("node content", False, "found no value where one is expected"),
    ("'-' indicator", False, "found something else in a list, expected '- ': indent it alike"),
    ("sequence entries are not allowed", False, "found '- ' beside a key, expected it on a line of its own"),
    (
        "expected key",
        False,
        "found wrong indentation, or text behind a value, expected a key that is indented like its siblings",
    ),
    ("<block end>", False, "found wrong indentation, expected a key or '- ' that is indented like its siblings"),
    ("<document start>", False, "found text after the end of a value, or wrong indentation"),
    ("maximum nesting depth", False, _NESTED),  # libyaml's own limit, which its look-ahead may reach first
    ("alphabetic or numeric", False, "found '*' or '&' without a name: quote the value"),
    ("line break", False, _BEHIND),
    ("indentation indicator", False, _BEHIND),
    ("escape", False, "found an unknown escape in double quotes: double the backslash, or use single quotes"),
)


class Scalar(Struct, frozen=True):
    """A scalar; `plain` in YAML's sense: neither quoted nor a block ('|' or '>')."""

    mark: Mark
    text: str
    plain: bool


class Items(Struct, frozen=True):
    """A sequence."""

    mark: Mark
    items: "tuple[Node, ...]"


class Pairs(Struct, frozen=True):
    """A mapping as written: keys may be of any kind, and may be duplicated."""

    mark: Mark
    pairs: "tuple[tuple[Node, Node], ...]"


class Bad(Struct, frozen=True):
    """A node that cannot be used."""

    mark: Mark
    message: str


Node = Scalar | Items | Pairs | Bad


class Composed(Struct, frozen=True):
    """A document; `root` is None when the text holds none, `extra` is where a second document starts."""

    root: Node | None
    extra: Mark | None = None

    def parts(self) -> "list[Node]":
        """Return the items of the lists in the root mapping: most of the document, in pieces."""
        values = [value for _, value in self.root.pairs] if isinstance(self.root, Pairs) else []
        return [item for value in values if isinstance(value, Items) for item in value.items]


class UnreadableError(Exception):
    """Text that cannot be read as YAML; `mark` is where it goes wrong, (0, 0) for the file as a whole."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


def decode(content: bytes) -> str:
    """Decode bytes as UTF-8, without a byte order mark.

    Raises:
        UnreadableError: they are not UTF-8.

    """
    content = content.removeprefix(BOM_UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        raise UnreadableError(_mark_after(before), "found bytes that are not UTF-8, expected UTF-8 text") from None


def compose(text: str) -> Composed:
    """Compose the one document in `text`.

    Raises:
        UnreadableError: it is not YAML, holds control characters, or is nested too deeply.

    """
    if (odd := Reader.NON_PRINTABLE.search(text)) is not None:
        message = f"found the control character U+{ord(odd[0]):04X}, expected printable text"
        raise UnreadableError(_mark_after(text[: odd.start()]), message)
    composer = _Composer(text)
    try:
        return composer.document()
    except yaml.YAMLError as error:
        raise _unreadable(error, text) from None


def _mark_after(text: str) -> Mark:
    lines = re.split(_LINE_BREAK, text)
    return len(lines), len(lines[-1]) + 1


def _unreadable(error: yaml.YAMLError, text: str) -> UnreadableError:
    problem = str(getattr(error, "problem", ""))
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    for part, at_context, advice in _ADVICE:
        if part in problem:
            at = _inside((context if at_context else None) or mark, text)
            return UnreadableError(at, _TAB if _is_tab(text, at) else advice)
    return UnreadableError(_inside(mark, text), "found something that is not YAML")


def _inside(mark: yaml.Mark | None, text: str) -> Mark:
    """Move a mark that is past the end of the text back to the end of its last non-blank line."""
    if mark is None:
        return 0, 0
    end = _mark_after(text.rstrip())
    return min((mark.line + 1, mark.column + 1), end)


def _is_tab(text: str, mark: Mark) -> bool:
    line, column = mark
    return re.split(_LINE_BREAK, text)[line - 1][column - 1 : column] == "\t"


class _Composer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._next: Callable[[], yaml.Event] = _Loader(text).get_event  # `yaml.parse` takes a third longer
        self._anchors: dict[str, Node] = {}

    def document(self) -> Composed:
        self._next()
        if isinstance(self._next(), yaml.StreamEndEvent):
            return Composed(None)
        root = self._node(self._next(), 0)
        self._next()
        following = self._next()
        extra = _mark(following) if isinstance(following, yaml.DocumentStartEvent) else None
        return Composed(root, extra)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > DEEPEST:
            raise UnreadableError(_mark(event), _NESTED)
        if isinstance(event, yaml.AliasEvent):
            unknown = Bad(_mark(event), "found an alias without an anchor that ends before it")
            return self._anchors.get(str(event.anchor), unknown)
        started = cast("yaml.ScalarEvent | yaml.CollectionStartEvent", event)
        if started.anchor is not None:
            self._anchors.pop(started.anchor, None)
        node = self._content(started, depth)
        if started.tag is not None:
            node = Bad(node.mark, "found a tag ('!'), expected a value without one")
        if started.anchor is not None:
            self._anchors[started.anchor] = node
        return node

    def _content(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, depth: int) -> Node:
        mark = _mark(event)
        if isinstance(event, yaml.ScalarEvent):
            if LONE_SURROGATE.search(event.value):
                return Bad(mark, "found half of a surrogate pair, expected whole characters")
            return Scalar(mark, event.value, event.implicit[0])
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(mark, tuple(self._items(depth + 1)))
        nodes = tuple(self._until_end(depth + 1))
        return Pairs(mark, tuple(zip(nodes[::2], nodes[1::2], strict=True)))

    def _until_end(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := self._next(), yaml.CollectionEndEvent):
            yield self._node(event, depth)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := self._next(), yaml.CollectionEndEvent):
            node = self._node(event, depth)
            yield self._swallowed(event) or node

    def _swallowed(self, event: yaml.Event) -> Bad | None:
        """Report an item that YAML reads as more text of the item above it, because it is indented further."""
        if not isinstance(event, yaml.ScalarEvent) or not event.implicit[0]:
            return None
        (first, _), last = _mark(event), cast("yaml.Mark", event.end_mark)
        for number in range(first, last.line + 1):
            before, dash, _ = self._lines[number].partition("- ")
            if dash and not before.strip():
                told = "found '- ' in text that goes on from the line above, expected it indented like its siblings"
                return Bad((number + 1, len(before) + 1), told)
        return None

    @cached_property
    def _lines(self) -> list[str]:
        return re.split(_LINE_BREAK, self._text)


def _mark(event: yaml.Event) -> Mark:
    mark = cast("yaml.Mark", event.start_mark)
    return mark.line + 1, mark.column + 1
