"""The clients that routing.yaml allows, identified by the keys that they send."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import SecretStr

from gateway.config.documents import ClientEntry
from gateway.config.fields import Unset
from gateway.config.shown import Path


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients by name, in the order written. Their keys appear in no repr."""

    keys: Mapping[str, SecretStr] = field(repr=False)
    _names: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_key = {key.get_secret_value(): name for name, key in self.keys.items()}
        object.__setattr__(self, "_names", MappingProxyType(by_key))

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names."""
        return tuple(self.keys)

    def name_of(self, key: str) -> str | None:
        """Name the client that has this key, if there is one.

        It is a look-up by hash, so its timing reveals nothing about the existing keys.
        """
        return self._names.get(key)

    @classmethod
    def of(cls, entries: Iterable[ClientEntry] | None) -> "Clients | None":
        """Return the clients that have a key: its variable is set. None without a list: everybody may ask."""
        if entries is None:
            return None
        return cls({each.name: each.api_key for each in entries if isinstance(each.api_key, SecretStr)})


def waiting(entries: Iterable[ClientEntry]) -> Iterator[tuple[Path, str]]:
    """Yield a path in routing.yaml and a message for each client whose key is in a variable that is not set."""
    for position, entry in enumerate(entries):
        if isinstance(entry.api_key, Unset):
            told = f"{entry.api_key.variable} is not set or empty, so the client {entry.name} is not let in"
            yield ("clients", position, "api_key"), told


def rekeyed(old: Clients | None, new: Clients | None) -> Iterator[str]:
    """Yield the names of the clients whose key has changed."""
    if old is not None and new is not None:
        yield from (name for name in new.keys if name in old.keys and old.keys[name] != new.keys[name])
