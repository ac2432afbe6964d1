"""Passes each event of the core to the handlers of its type alone."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ruvd.core.ports.events import Event, Observer

Handlers: TypeAlias = Mapping[type[Event], Callable[[Any], None]]


def observer_of(*tables: Handlers) -> Observer:
    """Returns an observer that calls the handlers of an event, in the order of the tables.

    One look-up serves all tables: most events of a completion have no handler, or one.
    """
    by_type: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}
    for table in tables:
        for kind, handler in table.items():
            by_type[kind] = (*by_type.get(kind, ()), handler)

    def observe(event: Event) -> None:
        for handler in by_type.get(type(event), ()):
            handler(event)

    return observe
