"""The content of the pages: values of the core, in the form in which the templates show them.

A caller sees its own tenant's sessions, as over gRPC. Administrators also see that others work, but
nothing of what is said. Texts are clipped, so that a page stays small whatever is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ruvd.core import tenants
from ruvd.core.completions.activity import Activity, AnswerTail, RunningCompletion
from ruvd.core.model import Message, Timings
from ruvd.core.sessions.turn_pages import TurnPage
from ruvd.rpc.identity import caller
from ruvd.rpc.identity.caller import Role

MAX_TEXT = 4000
_MAX_LABELS = 8
_MAX_LABEL = 60
_MAX_RUNNING = 100
_TAIL_OF_MANY = 300
_TAIL_OF_ONE = 4000


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the bar of a turn: its name, its seconds, and its place in percent of the bar."""

    name: str
    seconds: float
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class LiveRow:
    """A running completion. The end of its answer is None for a caller that must not read it."""

    completion: RunningCompletion
    tenant: str
    is_own: bool
    tail: AnswerTail | None


def is_operator() -> bool:
    """Tells whether the caller may see figures of the whole daemon."""
    identity = caller.current.get()
    return identity is None or identity.role is Role.ADMIN


def longest_seconds(page: TurnPage) -> float:
    """Returns the duration of the longest turn of a page, which has the longest bar."""
    return max(
        (
            shown.turn.finished.timings.total_seconds
            for exchange in page.exchanges
            for shown in exchange.messages
            if shown.turn
        ),
        default=0.0,
    )


def segments(timings: Timings, longest: float) -> Sequence[Segment]:
    """Returns the bar of a turn: what it waited for the engine, then the prompt, then the answer.

    Without a time to the first token the last two are one.
    """
    first = timings.time_to_first_token_seconds
    waited, total = timings.queue_seconds, timings.total_seconds
    if first is None:
        ends = [("waiting", waited), ("engine", total)]
    else:
        ends = [("waiting", waited), ("prompt", first), ("answer", total)]
    found: list[Segment] = []
    begin = 0.0
    for name, end in ends:
        spent = max(0.0, end - begin)
        scale = 100.0 / longest if longest > 0 else 0.0
        found.append(Segment(name, spent, round(begin * scale, 3), round(spent * scale, 3)))
        begin = max(begin, end)
    return found


def clipped(text: str, characters: int = MAX_TEXT) -> str:
    """Returns the beginning of a text, with the number of the characters that are left out."""
    left_out = len(text) - characters
    return text if left_out <= 0 else f"{text[:characters]} ... ({left_out:,} more characters)"


def labels(session_labels: Mapping[str, str]) -> Sequence[str]:
    """Returns some labels of a session, each as a short text."""
    texts = [
        f"{key}={value}"[:_MAX_LABEL] for key, value in sorted(session_labels.items())[:_MAX_LABELS]
    ]
    left_out = len(session_labels) - len(texts)
    return [*texts, f"and {left_out} more"] if left_out > 0 else texts


def texts(message: Message) -> Sequence[tuple[str, str]]:
    """Returns what a message says, each text with its kind."""
    found = [("reasoning", message.reasoning)] if message.reasoning else []
    if message.content or not message.tool_calls:
        found.append(("", message.content))
    found += [(f"calls {call.name}", call.arguments) for call in message.tool_calls]
    return [(kind, clipped(text)) for kind, text in found]


def running_in(activity: Activity, session_id: str) -> Sequence[LiveRow]:
    """Returns the completions that run or wait in a session of the caller's."""
    rows = activity.running(_MAX_RUNNING, caller.tenant(), session_id)
    return [_live_row(activity, each, _TAIL_OF_ONE) for each in rows]


def running(activity: Activity) -> Sequence[LiveRow]:
    """Returns the running completions that the caller may see."""
    tenant = None if is_operator() else caller.tenant()
    rows = activity.running(_MAX_RUNNING, tenant)
    return [_live_row(activity, each, _TAIL_OF_MANY) for each in rows]


def _live_row(activity: Activity, each: RunningCompletion, characters: int) -> LiveRow:
    tenant = tenants.tenant_of(each.completion_id)
    is_own = tenant == caller.tenant()
    is_shown = is_own and caller.sees_content()
    tail = activity.tail(each.completion_id, characters) if is_shown else None
    return LiveRow(each, tenant, is_own, tail)
