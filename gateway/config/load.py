"""Both files at once, parsed into frozen documents or into every fault.

The only way in: `sources.read` does the I/O; `parse` is pure, and raises for nothing that a file may contain.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path as FilePath
from typing import Generic, Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace
from pydantic import ValidationError

from gateway.config.compose import UnreadableError, decode
from gateway.config.documents import Document, ModelsDocument, RoutingDocument
from gateway.config.environment import read_env
from gateway.config.fallbacks import check_fallbacks
from gateway.config.faults import Fault, closest
from gateway.config.interpolate import interpolate
from gateway.config.messages import explain
from gateway.config.names import Names
from gateway.config.prices import odd_prices, unreadable_prices
from gateway.config.relations import odd_checks, unrelated
from gateway.config.shown import Path
from gateway.config.sources import ConfigFiles, Sources, is_legacy, misnamed
from gateway.config.strict_yaml import Broken, Tree, read_yaml

AnyDocument = TypeVar("AnyDocument", bound=Document)

_MIGRATION = "docs/migration.md"
_FEW = 20
_ALIKE = 0.85


@dataclass(frozen=True, slots=True)
class Loaded:
    """The content of both files: the documents that are valid, and all faults and notices.

    `models` is None only with a fault; `routing` is None with a fault, or when there is no routing.yaml.
    """

    models: ModelsDocument | None
    routing: RoutingDocument | None
    faults: tuple[Fault, ...]
    notices: tuple[Fault, ...]
    _trees: Mapping[str, Tree] = field(repr=False, compare=False)

    def fault(self, source: Literal["models", "routing"], path: Path, message: str) -> Fault:
        """Create a fault (or notice) about the value at a path, located there or at the nearest parent in the file."""
        return self._trees[source].fault(path, message)

    def let_go(self) -> None:
        """Free everything that was read except the documents; after that, faults can no longer be located."""
        for tree in self._trees.values():
            tree.let_go()

    def at(self, source: Literal["models", "routing"], path: Path) -> object:
        """Return the plain data at a path, text from variables as `Interpolated`; None where there is none."""
        try:
            return self._trees[source].at(path)
        except LookupError:
            return None


def parse(sources: Sources, files: ConfigFiles, environ: Mapping[str, str]) -> Loaded:
    """Build documents from what was read; `environ` wins over the `.env`. Never raises: faults are in the result."""
    env = _read_env(sources.env, files)
    variables = _Variables({**env.values, **environ}, environ, tuple(env.values))
    models = _models(sources, files, variables)
    names = Names.of(models.tree)
    among = (*names.faults, *check_fallbacks(models.tree, names), *unreadable_prices(models.tree))
    routing = _routing(sources, files, variables, names)
    return Loaded(
        models=models.document,
        routing=routing.document,
        faults=(*env.faults, *_in_order((*models.faults, *among)), *_in_order(routing.faults)),
        notices=(
            *env.notices,
            *_notices(sources, files),
            *_in_order((*models.notices, *odd_prices(models.tree))),
            *_in_order((*routing.notices, *odd_checks(routing.tree), *odd_prices(routing.tree))),
        ),
        _trees={"models": models.tree, "routing": routing.tree},
    )


@dataclass(frozen=True, slots=True, repr=False)
class _Variables:
    """`values` are all variables, `environ` those of the environment; `suggested` are the names in the `.env`."""

    values: Mapping[str, str]
    environ: Mapping[str, str]
    suggested: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Env:
    values: Mapping[str, str] = field(repr=False)
    faults: tuple[Fault, ...] = ()
    notices: tuple[Fault, ...] = ()


class _File(Struct, Generic[AnyDocument], frozen=True):
    tree: Tree
    document: AnyDocument | None = None
    faults: tuple[Fault, ...] = ()
    notices: tuple[Fault, ...] = ()


def _read_env(content: bytes | None, files: ConfigFiles) -> _Env:
    file = str(files.env)
    if content is None:
        missing = Fault.whole(file, "not found, though --env-file or GATEWAY_ENV_FILE names it")
        return _Env({}, notices=(missing,) if files.is_env_named else ())
    try:
        values, bad = read_env(decode(content))
    except UnreadableError as error:
        return _Env({}, (Fault(file, *error.mark, "", error.message),))
    message = "found a line that is not NAME=value, it is ignored"
    return _Env(values, notices=tuple(Fault(file, line, 1, "", message) for line in bad))


def _models(sources: Sources, files: ConfigFiles, variables: _Variables) -> _File[ModelsDocument]:
    file = str(files.models)
    if sources.models is None:
        told = _misnamed(sources, files.models) or "not found, expected the list of models there"
        fault = Fault.whole(file, f"{told}: see docs/configuration.md")
        return _File(Tree(file, Broken()), None, (fault,))
    found = _tree(sources.models, file, variables, "empty, expected models: and a list of at least one model")
    return _validated(ModelsDocument, *found)


def _routing(sources: Sources, files: ConfigFiles, variables: _Variables, names: Names) -> _File[RoutingDocument]:
    file = str(files.routing)
    if sources.routing is None:
        return _File(Tree(file), None, tuple(_without_routing(sources, files, variables, names)))
    advice = "empty, as a file that is still being written: to serve without a split, write local_deployment: []"
    tree, faults, notices = _tree(sources.routing, file, variables, advice)
    if _is_deprecated(tree.data, files.routing.name):
        return _File(tree, None, (tree.fault((), _deprecated(names)),))
    found = _validated(RoutingDocument, tree, faults, notices)
    return replace(found, faults=(*found.faults, *names.check(tree), *unrelated(tree), *unreadable_prices(tree)))


def _without_routing(sources: Sources, files: ConfigFiles, variables: _Variables, names: Names) -> Iterator[Fault]:
    named = variables.environ.get("ROUTING_CONFIG")
    if sources.legacy:
        yield Fault.whole(files.routing.parent / sources.legacy, _deprecated(names))
    elif named and FilePath(named) == files.routing:
        yield Fault.whole(files.routing, "not found, though ROUTING_CONFIG names it")
    elif told := _misnamed(sources, files.routing):
        yield Fault.whole(files.routing, told)


def _misnamed(sources: Sources, path: FilePath) -> str | None:
    """Return a message that the file is there with another suffix, if it is."""
    other = misnamed(path)
    if other is None or str(other) not in sources.misnamed:
        return None
    return f"not found, and {other.name} is not read: rename it to {path.name}"


def _tree(
    content: bytes, file: str, variables: _Variables, if_empty: str
) -> tuple[Tree, tuple[Fault, ...], tuple[Fault, ...]]:
    """Read a file's data; return it with its faults and notices."""
    tree, faults = read_yaml(content, file)
    if tree.data is None or (tree.data == {} and not faults):
        tree.data = Broken()
        return tree, (*faults, Fault.whole(file, if_empty)), ()
    more, notices = interpolate(tree, variables.values, variables.suggested)
    return tree, (*faults, *more), notices


def _validated(
    kind: type[AnyDocument], tree: Tree, faults: tuple[Fault, ...], notices: tuple[Fault, ...]
) -> _File[AnyDocument]:
    try:
        document = kind.model_validate(tree.data)
    except ValidationError as error:
        return _File(tree, None, (*faults, *explain(kind, error, tree)), notices)
    return _File(tree, None if faults else document, faults, notices)


def _is_deprecated(data: object, name: str) -> bool:
    if not isinstance(data, dict) or not data:
        return isinstance(data, list)
    split = {"local_deployment", "remote_deployment"}
    today = split if is_legacy(name) else RoutingDocument.model_fields
    return data.keys().isdisjoint(today) and not any(_is_misspelt(key, today) for key in islice(data, _FEW))


def _is_misspelt(key: str, known: Iterable[str]) -> bool:
    """Return whether a key is a known one but for a letter or two, such as `local_deployments`."""
    return bool(closest(key.casefold(), known, _ALIKE))


def _deprecated(names: Names) -> str:
    """Return a message that shows the smallest new file, on one line: YAML's flow style is JSON with fewer quotes."""
    model = json.dumps(next(names.written(), "llama-3.3-70b-instruct"), ensure_ascii=False).replace("$", "$$")
    smallest = f'local_deployment: [{{endpoint: "http://localhost:8000", models: [{model}]}}]'
    return f"found the deprecated deployment format, expected a routing.yaml such as {smallest} (see {_MIGRATION})"


def _notices(sources: Sources, files: ConfigFiles) -> Iterator[Fault]:
    if sources.legacy and sources.routing is not None:
        file = files.routing.parent / sources.legacy
        yield Fault.whole(file, f"not read, {files.routing.name} is: its format is deprecated (see {_MIGRATION})")


def _in_order(faults: Iterable[Fault]) -> list[Fault]:
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault.line, fault.column))
