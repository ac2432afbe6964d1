"""A commit that took effect, although the turn was told that it failed, is found by a repeat."""

from __future__ import annotations

from collections.abc import Sequence

from core import Core, collect, failed

from ruvd.core.completions.completion import CompletionRef
from ruvd.core.errors import StoreUnavailable
from ruvd.core.model import Finished
from ruvd.core.ports.store import Commit, RemovedSession
from ruvd.stores.memory import MemoryStore


class ForgetfulStore(MemoryStore):
    """A store whose commits take effect, but whose answers are lost."""

    loses = True

    async def commit(self, commit: Commit) -> Sequence[RemovedSession]:
        removed = await super().commit(commit)
        if self.loses:
            raise StoreUnavailable("the answer was lost")
        return removed


async def test_a_repeat_and_a_resume_get_the_answer_that_was_committed() -> None:
    core = Core(store=ForgetfulStore())
    events = await failed(core.start(request_id="r"), StoreUnavailable)
    finished = await core.say(request_id="r")
    assert finished.exchange_count == 1
    assert len(core.engine.requests) == 1
    ref = CompletionRef(session_id="s", request_id="r")
    resumed = [event async for event in core.completions.resume(ref, events[-1].sequence)]
    assert [type(each.event) for each in resumed] == [Finished]
    assert (await collect(core.start(request_id="r")))[-1].event == finished
