"""Where the configuration is on disk, and what was read from there."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec import Struct

from gateway.config.faults import ConfigError, Fault

_ABSENT: tuple[type[OSError], ...] = (FileNotFoundError, NotADirectoryError)
_READ_ONCE: Final = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
_LARGEST: Final = 64 << 20
"""Bytes that a file may have: enough for a hundred thousand models, and a bound on an endless device."""
_OTHER_SUFFIX: Final = {".yaml": ".yml", ".yml": ".yaml"}


class ConfigFiles(Struct, frozen=True):
    """The files that make up a configuration.

    `is_env_named` is true when `env` was asked for, rather than being the optional file beside the folder.
    """

    models: Path
    routing: Path
    env: Path
    is_env_named: bool = False

    @classmethod
    def of(cls, config_dir: Path, environ: Mapping[str, str], env_file: Path | None = None) -> "ConfigFiles":
        """Return the files of a config folder; MODELS_CONFIG and ROUTING_CONFIG each name a single file instead."""
        parent = config_dir / ".." if config_dir.name in {"", ".."} else config_dir.parent
        return cls(
            models=Path(environ.get("MODELS_CONFIG") or config_dir / "models.yaml"),
            routing=Path(environ.get("ROUTING_CONFIG") or config_dir / "routing.yaml"),
            env=env_file or parent / ".env",
            is_env_named=env_file is not None,
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """The content of the files; None where there is no such file. The repr shows no content.

    `legacy` names a file of the deprecated format (`deployment*.yaml`) beside routing.yaml, or where that would be.
    `misnamed` are files with the other suffix (`routing.yml`) in the place of those that are absent.
    """

    models: bytes | None = field(repr=False)
    routing: bytes | None = field(repr=False)
    env: bytes | None = field(default=None, repr=False)
    legacy: str | None = None
    misnamed: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify the content of models.yaml and routing.yaml."""
        parts = (
            b"-" if content is None else b"%d:%b" % (len(content), content) for content in (self.models, self.routing)
        )
        return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def read(files: ConfigFiles) -> Sources:
    """Read the files. Blocking.

    Raises:
        ConfigError: a file cannot be read, is a pipe or a socket, or too large; it names each such file and the reason.

    """
    faults: list[Fault] = []
    models = _content(files.models, faults)
    routing = _content(files.routing, faults)
    no_env = _ABSENT if files.is_env_named else (*_ABSENT, IsADirectoryError)
    env = _content(files.env, faults, no_env)
    if faults:
        raise ConfigError(faults)
    absent = [path for path, content in ((files.models, models), (files.routing, routing)) if content is None]
    return Sources(models, routing, env, _legacy(files.routing), frozenset(filter(None, map(_misnamed, absent))))


def is_legacy(name: str) -> bool:
    """Return whether a file's name is one of the deprecated format."""
    return name.startswith("deployment") and name.endswith((".yaml", ".yml"))


def _content(path: Path, faults: list[Fault], absent: tuple[type[OSError], ...] = _ABSENT) -> bytes | None:
    """Read a file; None where there is none, or where `.env` is a folder, in which some keep a virtual environment.

    A pipe is not opened: that would wait for its writer, and a second read would find it empty.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in _READ_ONCE:
            reason = f"is a {_READ_ONCE[kind]}, expected a file"
        else:
            with path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) <= _LARGEST:
                return content
            reason = f"is larger than {_LARGEST >> 20} MiB, expected a configuration"
    except absent:
        return None
    except OSError as error:
        reason = f"cannot be read: {(error.strerror or type(error).__name__).lower()}"
    faults.append(Fault.whole(path, reason))
    return None


def misnamed(path: Path) -> Path | None:
    """Return the path with the other suffix of YAML files (`.yml` for `.yaml`); None if it has neither."""
    other = _OTHER_SUFFIX.get(path.suffix)
    return path.with_suffix(other) if other else None


def _misnamed(path: Path) -> str | None:
    other = misnamed(path)
    return str(other) if other is not None and os.path.isfile(other) else None  # noqa: PTH113 - is_file may raise


def _legacy(routing: Path) -> str | None:
    beside = routing.parent.glob("deployment*.y*ml")
    names = (path.name for path in beside if is_legacy(path.name) and path.name != routing.name)
    return min(names, default=None)
