"""The instruments of calls that are forwarded to other replicas, which read `Statistics`."""

from ruvd.core.statistics import Statistics
from ruvd.telemetry.observables import ObservableInstruments

_OUTCOMES = ("ok", "failed", "stale", "leaving", "unreachable", "broken", "cancelled")
_NO_CALLS = {("Complete", outcome): 0 for outcome in _OUTCOMES}


def observe_peers(instruments: ObservableInstruments, sums: Statistics) -> None:
    """Creates the instruments of forwarded calls."""
    instruments.counter(
        "ruvd.peer.calls",
        "{call}",
        "The number of calls that were forwarded to another replica, by RPC and outcome.",
        lambda: [
            (count, {"ruvd.peer.rpc": rpc, "ruvd.peer.outcome": outcome})
            for (rpc, outcome), count in {**_NO_CALLS, **sums.forwarded_calls}.items()
        ],
    )
    instruments.counter(
        "ruvd.peer.call.duration",
        "s",
        "The time that calls took which were forwarded to another replica, by RPC and outcome.",
        lambda: [
            (seconds, {"ruvd.peer.rpc": rpc, "ruvd.peer.outcome": outcome})
            for (rpc, outcome), seconds in {**_NO_CALLS, **sums.forwarded_seconds}.items()
        ],
    )
