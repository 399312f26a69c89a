"""What changes when a new plan follows the one in force: worked out beforehand, off the event loop.

Comparing thousands of deployments takes tens of milliseconds, and a plan is put in force on the event loop. All that
depends only on the two plans is here, and may be worked out in a thread. Health and breakers, which change meanwhile,
are not used.
"""

from dataclasses import replace

from msgspec import Struct, structs

from gateway.routing import clients
from gateway.routing.breakers import strangers
from gateway.routing.diff import Diff, diff, rekeyed, same
from gateway.routing.plan import Plan
from gateway.routing.snapshot import Identity


class Succession(Struct, frozen=True):
    """A plan, and what it changes in the one before.

    `changes` are absent when both mean the same. `others` are the deployments of the old plan that are gone, or are now
    something else under the same name.
    """

    old: Plan | None
    new: Plan
    changes: Diff | None
    others: frozenset[Identity] = frozenset()

    @classmethod
    def of(cls, old: Plan | None, new: Plan) -> "Succession":
        """Compare two plans."""
        if old is None:
            return cls(old, new, diff(None, new.outline))
        if new.documents == old.documents and same(old.outline.parameters, new.outline.parameters):
            return cls(old, new, None)
        new = _sharing(old, new)
        before, now = old.catalogue.deployments, new.catalogue.deployments
        changes = diff(
            old.outline,
            new.outline,
            rekeyed(before, now),
            clients.rekeyed(old.settings.clients, new.settings.clients),
        )
        return cls(old, new, changes, strangers(before, now))


def _sharing(old: Plan, new: Plan) -> Plan:
    """Share the old plan's endpoints if they are equal: comparing them is then a test of identity."""
    if new.catalogue.endpoints != old.catalogue.endpoints:
        return new
    return replace(new, catalogue=structs.replace(new.catalogue, endpoints=old.catalogue.endpoints))
