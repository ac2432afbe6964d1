"""The work that the daemon does now, for people who watch it. Nothing here changes that work.

An engine reports the tokens of an answer only at its end. Until then the pieces of text that it has
sent are counted, which are tokens for most engines.
"""

from enum import Enum

from ruvd.core.completions.completion import Completion
from ruvd.core.completions.registry import CompletionRegistry
from ruvd.core.ports.clock import Clock
from ruvd.core.sessions.registry import SessionRegistry
from ruvd.core.tenants import tenant_of
from ruvd.core.values import value


class Phase(Enum):
    """The step in which a completion is."""

    WAITING = "waiting"
    PROMPT = "prompt"
    ANSWER = "answer"
    COMMIT = "commit"


@value(frozen=True, slots=True)
class RunningCompletion:
    """A completion that runs or waits. Durations are in seconds.

    `seconds` is the time since the call arrived. `queue_seconds` and `first_output_seconds` are the
    times from then to the engine and to the first output, None if it has not come so far. `model`
    is empty before it has the engine, and `sent_messages` is 0 then. `pieces` are those of the
    answer, its reasoning and its tool calls.
    """

    completion_id: str
    session_id: str
    model: str
    batch: bool
    phase: Phase
    seconds: float
    queue_seconds: float | None
    first_output_seconds: float | None
    sent_messages: int
    pieces: int
    readers: int

    @property
    def pieces_per_second(self) -> float | None:
        """The mean rate of the pieces after the first one; None if there is none to measure."""
        if self.first_output_seconds is None or self.pieces < 2:  # a rate needs two
            return None
        span = self.seconds - self.first_output_seconds
        return (self.pieces - 1) / span if span > 0 else None


@value(frozen=True, slots=True)
class AnswerTail:
    """The end of an answer that is being generated, and of its reasoning."""

    text: str
    reasoning: str


@value(frozen=True, slots=True)
class Waiting:
    """The numbers of completions that wait, by what they wait for."""

    session: int
    engine: int
    batch: int


class Activity:
    """The completions that run or wait in one daemon."""

    def __init__(
        self, sessions: SessionRegistry, completions: CompletionRegistry, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._completions = completions
        self._clock = clock

    @property
    def total(self) -> int:
        """The number of completions that run or wait."""
        return self._completions.running

    @property
    def waiting(self) -> Waiting:
        """The numbers of those that wait."""
        waiting = self._completions.engines.waiting
        return Waiting(self._sessions.turn_queue.waiting, waiting[False], waiting[True])

    def running(
        self, limit: int, tenant: str | None = None, session_id: str = ""
    ) -> list[RunningCompletion]:
        """Returns up to `limit` completions of a tenant and a session, those that began first."""
        now = self._clock.monotonic()
        found: list[RunningCompletion] = []
        for each in self._completions.all_running().values():
            if len(found) == limit:
                break
            is_of_tenant = tenant is None or tenant_of(each.id) == tenant
            if is_of_tenant and session_id in ("", each.session_id):
                found.append(_running(each, now))
        return found

    def tail(self, completion_id: str, characters: int) -> AnswerTail:
        """Returns the ends of the answer and of the reasoning of a completion, empty if unknown."""
        completion = self._completions.all_running().get(completion_id)
        if completion is None:
            return AnswerTail("", "")
        answer = completion.answer
        return AnswerTail(answer.text.tail(characters), answer.reasoning.tail(characters))


def _running(completion: Completion, now: float) -> RunningCompletion:
    answer = completion.answer
    first = answer.first_output
    return RunningCompletion(
        completion_id=completion.id,
        session_id=completion.session_id,
        model=answer.model,
        batch=completion.batch,
        phase=_phase(completion),
        seconds=now - answer.arrived,
        queue_seconds=answer.queue_seconds,
        first_output_seconds=None if first is None else first - answer.arrived,
        sent_messages=len(answer.plan.messages) if answer.plan else 0,
        pieces=answer.pieces,
        readers=completion.log.readers,
    )


def _phase(completion: Completion) -> Phase:
    answer = completion.answer
    if completion.committing:
        return Phase.COMMIT
    if answer.first_output is not None:
        return Phase.ANSWER
    return Phase.WAITING if answer.queue_seconds is None else Phase.PROMPT
