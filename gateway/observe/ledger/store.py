"""What the ledger asks of a database, and the two ways in which a database refuses."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.observe.ledger.rows import Rows, Value


class UnavailableError(Exception):
    """The database accepts nothing now; what it was given is retried. The message says why, without secrets."""


class RefusedError(Exception):
    """The database will not accept one of these rows, however often that is retried."""


class Store(Protocol):
    """A ledger's database, for one thread. It connects by itself, and again after each error."""

    def write(self, rows: Sequence[Rows]) -> None:
        """Add rows, all or none; a row that is there already stays as it is. Without rows, only open the database.

        Raises:
            UnavailableError: try again later.
            RefusedError: one of the rows cannot be written.

        """
        ...

    def prune(self, before: float, most: int) -> int:
        """Delete at most `most` rows from before a time (seconds since the epoch); return how many.

        Raises:
            UnavailableError: try again later.

        """
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class Reader(Protocol):
    """The ledger as it is at one moment; `since` is the SQL condition that selects rows from the time `:since` on."""

    since: str

    def rows(self, query: str, parameters: Mapping[str, Value]) -> Sequence[Sequence[object]]:
        """Run a query with `:name` parameters.

        Raises:
            UnavailableError: the ledger cannot be read, or takes too long.

        """
        ...
