"""The observers of the core's events, of which none can fail the core."""

import logging

from ruvd.core.ports.events import Event, Observer

_log = logging.getLogger("ruvd.daemon")


class Observers:
    """Tells every observer of every event, in the order in which they were added. An Observer.

    An observer that raises is logged, and the others receive the event all the same: the commit
    that it reports is durable already, and its caller must hear of it.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Tells this observer of the events from now on."""
        self._observers.append(observer)

    def __call__(self, event: Event) -> None:
        """Tells all observers of an event."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001  # an observer cannot fail the core
                _log.exception("an observer failed", extra={"told_of": type(event).__name__})
