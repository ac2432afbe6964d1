"""Several engines behind one: which one a model chooses, and what the core does with several."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from core import Core, collect, failed, settle
from fakes import ScriptedEngine, Step, done

from ruvd.core.completions.activity import Activity, Waiting
from ruvd.core.completions.ahead_compaction import AheadCompaction
from ruvd.core.completions.compaction_budget import CompactionBudget
from ruvd.core.completions.compaction_calls import CompactionCalls
from ruvd.core.completions.compactor import CompactionPolicy, Compactor
from ruvd.core.completions.summary_writer import SummaryWriter
from ruvd.core.errors import EngineRateLimited, EngineRejected, EngineUnavailable
from ruvd.core.model import Compaction, ContextWindow, Started
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import CompletionEnded, EngineStateChanged, StoreStateChanged
from ruvd.core.sessions.model import NewSession, SessionPolicy
from ruvd.core.statistics import Statistics
from ruvd.engines.routing.engine import RoutingEngine
from ruvd.engines.routing.named_engine import NamedEngine
from ruvd.rpc.health import Health, Readiness


class Engines:
    """A core over a default engine and the named ones `cloud` and `lab`."""

    def __init__(
        self,
        *,
        has_one_model: bool = False,
        cloud_slots: int | None = None,
        policy: SessionPolicy = SessionPolicy(),
    ) -> None:
        self.default = ScriptedEngine()
        self.cloud = ScriptedEngine(model="big", slots=cloud_slots)
        self.lab = ScriptedEngine(model="m")
        self.router = RoutingEngine(self.default, has_one_model=has_one_model)
        self.named = {
            "cloud": NamedEngine("cloud", self.cloud, ("big", "small", "c-*"), window_tokens=77),
            "lab": NamedEngine("lab", self.lab),
        }
        self.take("cloud", "lab")
        self.core = Core(self.router, policy=policy)  # type: ignore[arg-type]

    def take(self, *names: str) -> Sequence[NamedEngine]:
        engines = [self.named[name] for name in names]
        return self.router.exchange([(each, each.models_offered) for each in engines])

    def asked(self) -> list[str]:
        """The models that the engines were asked for, with the names of the engines."""
        scripted = {"default": self.default, "cloud": self.cloud, "lab": self.lab}
        return [
            f"{name}:{request.options.model}"
            for name, engine in scripted.items()
            for request in engine.requests
        ]


def model(name: str) -> CompletionOptions:
    return CompletionOptions(model=name)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("", "default:"),
        ("scripted", "default:scripted"),
        ("unknown", "default:unknown"),
        ("org/model", "default:org/model"),
        ("cloud", "cloud:big"),
        ("cloud/small", "cloud:small"),
        ("small", "cloud:small"),
        ("c-7", "cloud:c-7"),
        ("cloud/c-7", "cloud:c-7"),
        ("lab", "lab:m"),
        ("lab/org/model", "lab:org/model"),
        ("lab/big", "lab:big"),
    ],
)
async def test_the_model_chooses_the_engine_which_gets_its_own_name_of_it(
    name: str, asked: str
) -> None:
    engines = Engines()
    (started, *_) = await collect(engines.core.start(options=model(name)))
    assert engines.asked() == [asked]
    assert isinstance(started.event, Started)
    assert started.event.model == (name or "scripted")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cloud/other", "engine cloud has no model 'other'; it has 'big', 'small', 'c-*'"),
        ("other", "there is no model 'other'; there are 'scripted', 'big', 'small', 'c-*', "),
    ],
)
async def test_an_unknown_model_is_refused_with_those_that_there_are(name: str, text: str) -> None:
    engines = Engines(has_one_model=True)
    completion = engines.core.start(options=model(name))
    await failed(completion, EngineRejected)
    assert str(completion.error).startswith(text)
    assert engines.asked() == []


async def test_a_refusal_lists_a_bounded_number_of_models() -> None:
    engines = Engines(has_one_model=True)
    names = [f"{number}-{'x' * 190}" for number in range(900)]
    engines.router.exchange([(engines.named["lab"], names)])
    with pytest.raises(EngineRejected, match="and 881 more") as caught:
        await engines.router.for_model("other").ready()
    assert len(str(caught.value)) < 3000


async def test_a_session_may_change_its_engine_between_turns() -> None:
    engines = Engines()
    await engines.core.say("one")
    await engines.core.say("two", options=model("cloud"))
    await engines.core.say("three", options=model("lab/x"))
    assert engines.asked() == ["default:", "cloud:big", "lab:x"]
    (last,) = engines.lab.requests
    texts = [message.content for message in last.messages]
    assert texts == ["one", "answer 1", "two", "answer 1", "three"]
    assert last.session_key == "s"


async def test_the_model_of_a_session_chooses_the_engine() -> None:
    engines = Engines()
    await engines.core.commands.create(NewSession("s", model="cloud"))
    await engines.core.say("one")
    await engines.core.say("two", options=model("lab"))
    assert engines.asked() == ["cloud:big", "lab:m"]


async def test_the_window_has_the_limit_of_the_engine() -> None:
    engines = Engines(policy=SessionPolicy(context_window=ContextWindow(1, 9)))
    script: list[Step] = [EngineText("x"), done(prompt=90)]
    for _ in range(2):
        engines.default.scripts.append(script)
        await engines.core.say("one")
    engines.cloud.scripts.append(script)
    finished = await collect(engines.core.start("two", options=model("cloud")))
    assert isinstance(finished[0].event, Started)
    assert finished[0].event.context_trimmed, "90 tokens are more than 77"
    assert engines.router.window_tokens is None


async def test_each_engine_has_slots_of_its_own() -> None:
    engines = Engines(cloud_slots=1)
    hold = asyncio.Event()
    engines.cloud.scripts = [[hold, EngineText("a"), done()], [EngineText("b"), done()]]
    busy = engines.core.start(session_id="", options=model("cloud"))
    await settle()
    waits = engines.core.start(session_id="", options=model("cloud"))
    await settle()
    await engines.core.say(session_id="")
    await engines.core.say(session_id="", options=model("lab"))
    assert engines.core.completions.engines.waiting == {False: 1, True: 0}
    activity = Activity(engines.core.sessions, engines.core.completions, engines.core.clock)
    assert activity.waiting == Waiting(session=0, engine=1, batch=0)
    assert engines.cloud.most_running == 1
    hold.set()
    await collect(busy)
    await collect(waits)
    assert engines.core.completions.engines.waiting == {False: 0, True: 0}


async def test_a_batch_narrows_the_engine_that_asks_to_slow_down_and_no_other() -> None:
    engines = Engines(cloud_slots=8)
    engines.cloud.scripts = [[EngineRateLimited("slowly")]]
    await failed(
        engines.core.start(session_id="", batch=True, options=model("cloud")), EngineRateLimited
    )
    chosen = engines.core.completions.engines
    assert chosen.of("cloud").scheduler.narrowings == 1
    assert chosen.of("lab").scheduler.narrowings == chosen.default.scheduler.narrowings == 0


async def test_running_turns_of_a_removed_engine_end_and_new_ones_are_refused() -> None:
    engines = Engines(cloud_slots=1)
    hold = asyncio.Event()
    engines.cloud.scripts = [[EngineText("a"), hold, EngineText("b"), done()]]
    running = engines.core.start(options=model("cloud"))
    await settle()
    queued = engines.core.start(session_id="t", options=model("small"))
    await settle()
    (retired,) = engines.take("lab")
    unused = asyncio.create_task(engines.core.completions.engines.wait_unused(retired))
    completion = engines.core.start(session_id="u", options=model("cloud"))
    await failed(completion, EngineRejected)
    assert "the engine cloud was removed from the settings" in str(completion.error)
    assert not unused.done()
    hold.set()
    await collect(running)
    await asyncio.wait_for(unused, 60)
    await collect(queued)
    assert engines.asked() == ["default:small", "cloud:big"], "another engine may have the model"


async def test_a_turn_that_waits_for_an_engine_that_is_changed_goes_to_the_new_one() -> None:
    engines = Engines(cloud_slots=1)
    hold = asyncio.Event()
    engines.cloud.scripts = [[hold, EngineText("a"), done()]]
    running = engines.core.start(options=model("cloud"))
    await settle()
    waits = engines.core.start(session_id="t", options=model("cloud"))
    await settle()
    other = ScriptedEngine(model="bigger")
    engines.named["cloud"] = NamedEngine("cloud", other)
    engines.take("cloud", "lab")
    hold.set()
    await collect(running)
    await collect(waits)
    assert [request.options.model for request in other.requests] == ["bigger"]


async def test_an_engine_that_was_removed_may_come_back() -> None:
    engines = Engines()
    engines.take()
    engines.named["cloud"] = NamedEngine("cloud", engines.cloud)
    engines.take("cloud")
    await engines.core.say(options=model("cloud"))
    assert engines.asked() == ["cloud:big"]


async def test_without_named_engines_the_default_engine_itself_is_called() -> None:
    router = RoutingEngine(default := ScriptedEngine())
    assert router.for_model("") is router.for_model("any") is default


async def test_all_models_are_listed_also_while_an_engine_is_down() -> None:
    class Down(ScriptedEngine):
        async def models(self) -> Sequence[str]:
            raise EngineUnavailable("down")

    router = RoutingEngine(Down(model="d"))
    cloud = NamedEngine("cloud", Down(model="big"))
    offered = ScriptedEngine(model="m")
    lab = NamedEngine("lab", offered)
    router.exchange([(cloud, ["big", "c-*"]), (lab, [])])
    assert await router.models() == ["big", "lab/m"]
    router.exchange([(NamedEngine("x", Down()), ["a*"])])
    with pytest.raises(EngineUnavailable):
        await router.models()


async def test_the_default_engines_model_is_ambiguous_in_a_named_one() -> None:
    router = RoutingEngine(ScriptedEngine(model="org/m"))
    engine = NamedEngine("cloud", ScriptedEngine())
    assert list(router.table([(engine, ["a", "org/m"])]).ambiguities()) == [
        ("cloud", "the model 'org/m' is that of the default engine")
    ]
    engine = NamedEngine("org", ScriptedEngine())
    assert [name for name, _ in router.table([(engine, [])]).ambiguities()] == ["org"]


async def test_a_summary_is_written_by_the_engine_of_its_model_within_the_budget() -> None:
    """The session's engine is on this machine, and the one that writes the summaries elsewhere."""
    window = ContextWindow(1, 5, compaction=Compaction.SUMMARY)
    engines = Engines(policy=SessionPolicy(context_window=window))
    core = engines.core
    policy = CompactionPolicy(64, "cloud/small", 200)
    compactor = Compactor(core.sessions, engines.router, core.clock, core.observe, policy)
    calls = CompactionCalls(core.sessions, compactor, core.completions)
    budget = CompactionBudget(core.clock, day_tokens=5)
    writer = SummaryWriter(compactor, waits_for_idle=True, continues_answers=True)
    ahead = AheadCompaction(
        core.sessions, compactor, core.completions, None, calls.last_options, core.observe, budget,
        writer,
    )  # fmt: skip
    core.observers += [calls, ahead]
    task = asyncio.create_task(ahead.run())
    engines.cloud.scripts = [[EngineText("SUM"), done(prompt=10)]]
    for text in ("one", "two", "three"):
        await core.say(text)
    await settle()
    (request,) = engines.cloud.requests
    assert (request.options.model, request.options.max_tokens) == ("small", 200)
    stored = await core.store.get("s")
    assert stored is not None
    assert stored.summary is not None
    assert stored.summary.text == "SUM"
    for text in ("four", "five", "six", "seven"):
        await core.say(text)
    await settle()
    assert len(engines.cloud.requests) == 1, "the budget of the day is used up"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_events_of_a_named_engine_have_its_name_and_leave_readiness_alone() -> None:
    engines = Engines()
    await engines.core.say(options=model("cloud"))
    (ended,) = [each for each in engines.core.events if isinstance(each, CompletionEnded)]
    assert ended.engine == "cloud"
    statistics, readiness = Statistics(), Readiness(Health("1"))
    readiness(StoreStateChanged(up=True, detail=""))
    for event in (
        EngineStateChanged(up=True, detail=""),
        EngineStateChanged(up=True, detail="", engine="cloud"),
        EngineStateChanged(up=False, detail="", engine="cloud"),
        EngineStateChanged(up=False, detail="", engine="lab"),
        EngineStateChanged(up=True, detail="", engine="cloud"),
    ):
        statistics(event)
        readiness(event)
    assert readiness.ready
    assert (statistics.engine_up, statistics.engine_restarts) == (True, 0)
    assert statistics.named_engines_up == {"cloud": True, "lab": False}
    assert dict(statistics.named_engine_restarts) == {"cloud": 1, "lab": 0}
    statistics(EngineStateChanged(up=None, detail="", engine="cloud"))
    assert statistics.named_engines_up == {"lab": False}
    assert "cloud" not in statistics.named_engine_restarts
