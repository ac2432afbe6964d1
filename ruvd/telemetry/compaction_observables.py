"""The instruments of summaries, which read the sums of `Statistics`."""

from ruvd.core.statistics import Statistics
from ruvd.telemetry.observables import ObservableInstruments

_NO_REQUESTS = {
    (outcome, ahead): 0
    for outcome in ("written", "interrupted", "failed")
    for ahead in (False, True)
}
_NONE_GIVEN_UP = dict.fromkeys(("ENGINE_UNAVAILABLE", "QUOTA_EXCEEDED"), 0)
_NO_TOKENS = dict.fromkeys(("prompt", "cached", "completion"), 0)


def observe_compaction(instruments: ObservableInstruments, sums: Statistics) -> None:
    """Creates the instruments of summaries."""
    instruments.counter(
        "ruvd.compactions",
        "{summary}",
        "The number of summaries that took the place of exchanges in a session's prompts.",
        lambda: [(sums.compactions, {})],
    )
    instruments.counter(
        "ruvd.compaction.requests",
        "{request}",
        "The number of requests to the engine for a summary, by outcome, and by whether they were"
        " made ahead or for a caller who waits.",
        lambda: [
            (count, {"ruvd.compaction.outcome": outcome, "ruvd.compaction.ahead": ahead})
            for (outcome, ahead), count in {**_NO_REQUESTS, **sums.summary_requests}.items()
        ],
    )
    instruments.counter(
        "ruvd.compaction.duration",
        "s",
        "The time that requests to the engine for a summary took.",
        lambda: [(sums.summary_seconds, {})],
    )
    instruments.counter(
        "ruvd.compaction.tokens",
        "{token}",
        "The number of tokens of requests for a summary: of prompts, those of them that were cached"
        " by the engine, and generated ones.",
        lambda: [
            (count, {"ruvd.compaction.token_type": kind})
            for kind, count in {**_NO_TOKENS, **sums.summary_tokens}.items()
        ],
    )
    instruments.counter(
        "ruvd.compaction.given_up",
        "{summary}",
        "The number of summaries that were due and not made for now, by the reason of the error.",
        lambda: [
            (count, {"ruvd.compaction.reason": reason})
            for reason, count in {**_NONE_GIVEN_UP, **sums.compactions_given_up}.items()
        ],
    )
