"""`gateway check`: print what is wrong with a configuration, or what it means, or what a save of it would change."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TextIO
from urllib.error import HTTPError

import msgspec

from gateway.api.plan import PATH, InForce
from gateway.asking import UnreachableError, ask, printable
from gateway.config.faults import ConfigError, Fault
from gateway.config.load import parse
from gateway.config.sources import ConfigFiles, read
from gateway.observe.sink import LogSink
from gateway.observe.target import STREAMS
from gateway.routing.diff import Change, Diff, diff
from gateway.routing.plan import Plan
from gateway.routing.snapshot import Deployment
from gateway.server import build

_TIMEOUT: Final = 5.0
_LARGEST: Final = 256 << 20
_COLOURS: Final = {"+": "\x1b[32m", "-": "\x1b[31m", "~": "\x1b[33m"}
_PLAIN: Final = "\x1b[0m"
_SIGNS: Final = {
    "models_added": "+",
    "models_removed": "-",
    "deployments_added": "+",
    "deployments_removed": "-",
}


def check(files: ConfigFiles, environ: Mapping[str, str], *, against: str | None, as_data: bool) -> int:
    """Read a configuration as `serve` does, print what it means, and return the exit code. Blocking.

    With `against`, print what it would change in the gateway at that address.

    Raises:
        UnreachableError: there is no gateway, or its answer is not a plan.

    """
    notices: tuple[Fault, ...] = ()
    try:
        sources = read(files)
        notices = parse(sources, files, environ).notices
        built = build(sources, files, environ, _check_output)
    except ConfigError as error:
        _print_faults(error.faults, notices, as_data=as_data)
        return 1
    if against is not None:
        print(_compared(built, against, as_data=as_data))
    else:
        print(json.dumps(_plan(built), indent=2) if as_data else _table(built))
    return 0


def _compared(built: Plan, address: str, *, as_data: bool) -> str:
    found = in_force(address)
    changes = diff(found.plan, built.outline)
    if as_data:
        return json.dumps(_as_json(address, found, changes, built), indent=2)
    return _as_text(address, found, changes, built, colour=wants_colour(sys.stdout, os.environ))


def _check_output(target: str) -> None:
    """Raise OSError if `target` cannot be written. Create no file: `check` may run as another user than `serve`."""
    if target not in STREAMS and not os.path.lexists(target):
        folder = next(parent for parent in Path(target).absolute().parents if os.path.lexists(parent))
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return
    LogSink.check(target)


def _print_faults(faults: Sequence[Fault], notices: Sequence[Fault], *, as_data: bool) -> None:
    if as_data:
        told = {"faults": [fault.as_dict() for fault in faults], "warnings": [notice.as_dict() for notice in notices]}
        print(json.dumps(told, indent=2))
        return
    plural = "" if len(faults) == 1 else "s"
    lines = [*(f"warning: {notice}" for notice in notices), *map(str, faults), f"{len(faults)} fault{plural}"]
    print("\n".join(lines), file=sys.stderr)


def _plan(built: Plan) -> dict[str, object]:
    return {
        "faults": [],
        "warnings": [notice.as_dict() for notice in built.notices],
        "strategy": built.settings.strategy,
        "models": [
            {
                "id": model.id,
                "deployments": [
                    {**_row(deployment), "share": round(float(share), 6)}
                    for deployment, share in built.configured[model.id].items()
                ],
                "inactive": [i.variable for i in built.inactive if i.model == model.id],
            }
            for model in built.models
        ],
    }


def _row(deployment: Deployment) -> dict[str, str]:
    endpoint = deployment.endpoint.identity
    return {"name": deployment.name, "group": deployment.group, "endpoint": endpoint, "kind": deployment.kind}


def _table(built: Plan) -> str:
    lines = [f"warning: {notice}" for notice in built.notices]
    for model in built.models:
        lines += ["", model.id]
        rows = [
            (f"{float(share):.2%}" if share else "fallback", *_row(deployment).values())
            for deployment, share in built.configured[model.id].items()
        ]
        rows += [
            ("inactive", "-", i.group, f"waits for {i.variable}", "-") for i in built.inactive if i.model == model.id
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for share, *cells in rows:
            shown = (cell.ljust(width) for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join(["", share.rjust(widths[0]), *shown]).rstrip())
    lines += ["", f"configuration ok (strategy: {built.settings.strategy})"]
    return "\n".join(lines).lstrip("\n")


def in_force(url: str) -> InForce:
    """Ask the gateway at `url` for its plan. Blocking.

    Raises:
        UnreachableError: there is no gateway, or its answer is not a plan.

    """
    address = url.rstrip("/") + PATH
    try:
        return msgspec.json.decode(ask(address, _TIMEOUT, _LARGEST), type=InForce)
    except HTTPError as error:
        error.close()
        raise UnreachableError(f"{address}: status {error.code}, expected the plan of a gateway") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreachableError(f"{address}: the answer is not the plan of a gateway of this version") from error


def _as_json(url: str, found: InForce, changes: Diff, built: Plan) -> dict[str, object]:
    """Return the comparison ready for JSON; `changes` are those that a reload would log."""
    return {
        "faults": [],
        "warnings": [notice.as_dict() for notice in built.notices],
        "running": {"url": url, "generation": found.generation, "hash": found.hash},
        "changes": changes.as_dict(),
    }


def _as_text(url: str, found: InForce, changes: Diff, built: Plan, *, colour: bool) -> str:
    """Return the comparison as text, model by model, with a line for each deployment that changes."""
    warnings = [f"warning: {notice}" for notice in built.notices]
    blocks = [line for group in _grouped(changes.changes) for line in _block(group)]
    lines = [_coloured(line) if colour else line for line in map(printable, blocks)]
    parts = changes.as_dict()
    number = len(changes.changes)
    count = f"{number or 'no'} change{'' if number == 1 else 's'}"
    where = f"generation {found.generation} at {url}" if found.plan else f"{url}, which has no configuration yet"
    end = [f"{count} to {where}; keys are not compared"]
    if {"inactive", "active"} & parts.keys() or any(line.startswith("clients:") for line in parts.get("settings", ())):
        end.append("variables are those of this shell and the .env: the gateway's own may differ")
    return "\n\n".join("\n".join(block) for block in (warnings, lines, end) if block)


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether to colour the output to a stream (https://no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _grouped(changes: Iterable[Change]) -> Iterable[list[Change]]:
    """Return the changes grouped by model, with the settings last."""
    groups: dict[str | None, list[Change]] = {}
    for change in changes:
        groups.setdefault(change.model, []).append(change)
    settings = groups.pop(None, None)
    return [*groups.values(), *([settings] if settings else ())]


def _block(changes: list[Change]) -> Iterator[str]:
    """Yield the lines for the changes of one model, or of the settings."""
    whole = next(
        (_SIGNS[change.part] for change in changes if change.part.startswith("models_") and not change.text), " "
    )
    yield f"{whole} {'settings' if changes[0].model is None else changes[0].model}"
    rows: dict[str | None, list[Change]] = {}
    for change in changes:
        rows.setdefault(change.deployment, []).append(change)
    for change in rows.pop(None, ()):
        if change.text:
            yield f"    ~ {change.text}"
    width = max(map(len, filter(None, rows)), default=0)
    for name, row in rows.items():
        sign = next((_SIGNS[change.part] for change in row if change.part in _SIGNS), "~")
        texts = (f"weight {change.text}" if change.part == "weights" else change.text for change in row)
        yield f"    {sign} {(name or '').ljust(width)}  {', '.join(filter(None, texts))}".rstrip()


def _coloured(line: str) -> str:
    colour = _COLOURS.get(line.strip()[:1] if line[0] == " " else line[0])
    return f"{colour}{line}{_PLAIN}" if colour else line
