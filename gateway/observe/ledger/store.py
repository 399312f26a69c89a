"""What the ledger asks of a database, and the two ways in which one says no."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.observe.ledger.rows import Rows, Value


class UnavailableError(Exception):
    """The database takes nothing now; what it was given is tried again. The message says why, without a secret."""


class RefusedError(Exception):
    """The database will not take one of these rows, however often it is tried."""


class Store(Protocol):
    """A ledger's database, for one thread. It connects by itself, and anew after each error."""

    def write(self, rows: Sequence[Rows]) -> None:
        """Add rows, all or none; a row that is there already stays as it is. Without rows, only look after it.

        Raises:
            UnavailableError: try again later.
            RefusedError: one of the rows cannot be written.

        """
        ...

    def prune(self, before: float, most: int) -> int:
        """Delete rows from before a time (seconds since the epoch), `most` at a time; tell how many.

        Raises:
            UnavailableError: try again later.

        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class Reader(Protocol):
    """A look at the ledger as it is at one moment; `since` is the SQL that chooses rows from the time `:since` on."""

    since: str

    def rows(self, query: str, parameters: Mapping[str, Value]) -> Sequence[Sequence[object]]:
        """Run a query with `:name` parameters.

        Raises:
            UnavailableError: the ledger cannot be read, or takes too long.

        """
        ...
