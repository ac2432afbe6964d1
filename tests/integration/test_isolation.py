"""Two tenants side by side: bob calls every RPC of the daemon with every id of ann's.

The RPCs are those that the daemon's reflection names. Each call is compared with the same call for
ids that were never used: code, text, details and responses must be the same. One that has no row in
the table of requests fails the test.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import postgres
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from running import RunningDaemon, StartDaemon
from wire import turn

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.rpc.identity.permissions import ROLES
from ruvd.v1 import session_service_pb2 as pb

SECRET = "what-only-ann-may-read"  # noqa: S105  # no password
ANN = "ann"
API, ADMIN = "/ruvd.v1.SessionService/", "/ruvd.admin.v1.AdminService/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# They differ from call to call, whoever makes it.
VOLATILE = {
    "create_time", "last_used_time", "expire_time", "sequence", "timings", "wall_time",
    "total_latency", "avg_session_latency", "avg_stateless_latency", "avg_latency_reduction",
    "avg_prefill_reduction", "size_bytes", "memory_bytes",
    # An administrator sees all that runs, with its tenant and ids, without its content.
    "completions",
}  # fmt: skip
# The medians may differ by this factor: a busy machine makes single calls much slower.
MOST_TIMES = 3.0
TIMED_CALLS = 25


@dataclass(frozen=True)
class Ids:
    """All that bob may have learnt of ann's, or the same of nobody's."""

    session: str
    live_session: str
    expired_session: str
    ended_session: str
    completion: str
    live_completion: str
    batch_completion: str
    request: str
    live_request: str
    stateless_request: str
    list_token: str
    history_token: str
    label: str


def unused() -> Ids:
    """Returns ids of the same form and length that nobody has used."""
    made = "cmpl-" + "x" * 24
    return Ids(
        "session-nobodys", "live-nobodys", "expired-nobodys", "ended-nobodys",
        made + "1", made + "2", made + "3",
        "request-nobodys", "live-request-nobodys", "stateless-nobodys",
        base64.urlsafe_b64encode(b"77").decode(),
        base64.urlsafe_b64encode(f"2@{(1.5).hex()}".encode()).decode(),
        "label-nobodys",
    )  # fmt: skip


def _said(ids: Ids, name: str) -> list[pb.Message]:
    # The first word differs, so nothing of it is in bob's own prompt cache.
    return [pb.Message(role=pb.ROLE_USER, content=f"{name}-{ids.session} hello")]


def _completions(kind: Callable[..., Any], ids: Ids) -> list[Any]:
    return [
        *(kind(completion_id=each) for each in _completion_ids(ids)),
        kind(session_id=ids.session, request_id=ids.request),
        kind(session_id=ids.live_session, request_id=ids.live_request),
        kind(request_id=ids.stateless_request),
    ]


def _completion_ids(ids: Ids) -> tuple[str, ...]:
    return (ids.completion, ids.live_completion, ids.batch_completion)


def _sessions(ids: Ids) -> tuple[str, ...]:
    return (ids.session, ids.live_session, ids.expired_session, ids.ended_session)


def _get(ids: Ids) -> list[Any]:
    full = pb.SESSION_VIEW_FULL
    return [
        *(pb.GetSessionRequest(session_id=each) for each in _sessions(ids)),
        *(pb.GetSessionRequest(session_id=each, view=full) for each in _sessions(ids)),
        pb.GetSessionRequest(
            session_id=ids.session, view=full, page_size=1, page_token=ids.history_token
        ),
    ]


def _complete(ids: Ids) -> list[Any]:
    def request(name: str, **fields: Any) -> pb.CompleteRequest:
        return pb.CompleteRequest(messages=_said(ids, f"complete-{name}"), **fields)

    return [
        *(request("no", session_id=each, require_existing=True) for each in _sessions(ids)),
        *(request(f"new{n}", session_id=each) for n, each in enumerate(_sessions(ids)[:2])),
        request("busy", session_id=ids.live_session, if_busy=pb.IF_BUSY_REJECT),
        request("new", session_id=ids.expired_session, request_id=ids.request),
        request("stateless", request_id=ids.stateless_request),
    ]


def _batch(ids: Ids) -> list[Any]:
    existing = pb.CompleteRequest(
        session_id=ids.session, require_existing=True, messages=_said(ids, "batch-no")
    )
    stateless = pb.CompleteRequest(request_id=ids.live_request, messages=_said(ids, "batch-yes"))
    return [pb.BatchCompleteRequest(items=[existing]), pb.BatchCompleteRequest(items=[stateless])]


# The requests of each RPC that use ids. An RPC without ids has its plain request.
TABLE: dict[str, Callable[[Ids], Sequence[Any]]] = {
    f"{API}GetSession": _get,
    f"{API}ListSessions": lambda ids: [
        pb.ListSessionsRequest(),
        pb.ListSessionsRequest(page_size=1, page_token=ids.list_token),
        pb.ListSessionsRequest(label_filter={"of": ids.label}),
    ],
    f"{API}UpdateSession": lambda ids: [
        pb.UpdateSessionRequest(session_id=each, labels={"a": "b"}) for each in _sessions(ids)
    ],
    f"{API}AppendMessages": lambda ids: [
        pb.AppendMessagesRequest(
            session_id=each, messages=_said(ids, "append"), request_id=ids.request
        )
        for each in _sessions(ids)
    ],
    f"{API}ForkSession": lambda ids: [
        pb.ForkSessionRequest(session_id=each, request_id=ids.request) for each in _sessions(ids)
    ],
    f"{API}CompactSession": lambda ids: [
        *(pb.CompactSessionRequest(session_id=each) for each in _sessions(ids)),
        *(pb.CompactSessionRequest(session_id=each, dry_run=True) for each in _sessions(ids)),
    ],
    f"{API}EndSession": lambda ids: [
        *(pb.EndSessionRequest(session_id=each) for each in _sessions(ids)),
        *(pb.EndSessionRequest(session_id=each, allow_missing=True) for each in _sessions(ids)),
    ],
    f"{API}ResumeCompletion": lambda ids: _completions(pb.ResumeCompletionRequest, ids),
    f"{API}CancelCompletion": lambda ids: _completions(pb.CancelCompletionRequest, ids),
    f"{API}GetSessionMetrics": lambda _: [pb.GetSessionMetricsRequest()],
    f"{API}GetServerInfo": lambda _: [pb.GetServerInfoRequest()],
    f"{API}ListModels": lambda _: [pb.ListModelsRequest()],
    # These create sessions of bob's own with ann's ids, which is allowed; they are ended after it.
    f"{API}CreateSession": lambda ids: [
        pb.CreateSessionRequest(session_id=each, request_id=f"{ids.request}{number}")
        for number, each in enumerate(_sessions(ids))
    ],
    f"{API}Complete": _complete,
    f"{API}BatchComplete": _batch,
    f"{ADMIN}GetStatus": lambda _: [admin_pb.GetStatusRequest()],
    f"{ADMIN}Drain": lambda _: [admin_pb.DrainRequest()],
    f"{ADMIN}Undrain": lambda _: [admin_pb.UndrainRequest()],
    f"{ADMIN}SetLogLevel": lambda _: [admin_pb.SetLogLevelRequest()],
    f"{ADMIN}Backup": lambda ids: [admin_pb.BackupRequest(name=ids.session)],
    f"{ADMIN}ListTenants": lambda ids: [
        admin_pb.ListTenantsRequest(),
        admin_pb.ListTenantsRequest(page_token=ids.history_token),
    ],
    f"{ADMIN}ListCompletions": lambda _: [admin_pb.ListCompletionsRequest()],
    f"{ADMIN}ReloadSecrets": lambda _: [admin_pb.ReloadSecretsRequest()],
    f"{ADMIN}ReloadSettings": lambda _: [admin_pb.ReloadSettingsRequest()],
    "/grpc.health.v1.Health/Check": lambda ids: [
        health_pb2.HealthCheckRequest(service=each) for each in _sessions(ids)
    ],
    "/grpc.health.v1.Health/Watch": lambda ids: [
        health_pb2.HealthCheckRequest(service=ids.session)
    ],
    REFLECTION: lambda ids: [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=ids.session)
    ],
}


@dataclass(frozen=True)
class Method:
    """An RPC as reflection shows it, which is all that the calls use of it."""

    path: str
    output: Any
    client_streaming: bool
    server_streaming: bool


class Caller:
    """Calls RPCs by their paths with one credential."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel: Any = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    def call(self, method: Method, request: Any) -> Any:
        kind = "stream" if method.client_streaming else "unary"
        back = "stream" if method.server_streaming else "unary"
        rpc = getattr(self._channel, f"{kind}_{back}")(
            method.path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=method.output.FromString,
        )
        sent = iter([request]) if method.client_streaming else request
        return rpc(sent, metadata=self._metadata, timeout=60)

    async def responses(self, method: Method, request: Any) -> list[Any]:
        """Returns the responses; the first one of a stream that has no end."""
        call = self.call(method, request)
        if not method.server_streaming:
            return [await call]
        if method.path.endswith("/Watch"):
            first = await anext(aiter(call))
            call.cancel()
            return [first]
        return [response async for response in call]

    async def outcome(self, method: Method, request: Any) -> str:
        """Returns all that the caller gets, as text: responses, or code, text and details."""
        try:
            return json.dumps([_plain(each) for each in await self.responses(method, request)])
        except grpc.aio.AioRpcError as error:
            trailing = dict(error.trailing_metadata() or ())
            raw: Any = trailing.pop("grpc-status-details-bin", b"")
            found = [str(each) for each in _details(status_pb2.Status.FromString(raw))]
            return json.dumps([error.code().name, error.details(), found, sorted(trailing)])


def _details(status: status_pb2.Status) -> list[Any]:
    kinds = (
        error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo,
    )  # fmt: skip
    unpacked = []
    for detail in status.details:
        for kind in kinds:
            message = kind()
            if detail.Unpack(message):
                unpacked.append(message)
    assert len(unpacked) == len(status.details)
    return unpacked


def _plain(message: Any) -> Any:
    """Returns the message without what differs from call to call."""

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [each for item in value if (each := without(item)) is not None]
        if not isinstance(value, dict):
            return value
        if "delta" in value:  # how many there are depends on the reader; Finished has the text
            return None
        return {
            key: "(made by the daemon)" if key == "completion_id" else without(each)
            for key, each in value.items()
            if key not in VOLATILE
        }

    return without(MessageToDict(message, preserving_proto_field_name=True))


async def served(caller: Caller) -> list[Method]:
    """Returns the RPCs of all services that the daemon's reflection names."""
    ask = Method(REFLECTION, reflection_pb2.ServerReflectionResponse, True, True)  # noqa: FBT003
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (listed,) = await caller.responses(ask, request)
    methods: list[Method] = []
    for service in listed.list_services_response.service:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service.name)
        (answer,) = await caller.responses(ask, request)
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            for found in file.service:
                if f"{file.package}.{found.name}" == service.name:
                    methods += [_method(service.name, each) for each in found.method]
    assert len(methods) == len({each.path for each in methods}) > 20
    return methods


def _method(service: str, found: descriptor_pb2.MethodDescriptorProto) -> Method:
    output = descriptor_pool.Default().FindMessageTypeByName(found.output_type.removeprefix("."))
    return Method(
        f"/{service}/{found.name}",
        message_factory.GetMessageClass(output),
        found.client_streaming,
        found.server_streaming,
    )


@dataclass
class Side:
    """A daemon with both tenants: ann has everything, bob has nothing."""

    running: RunningDaemon
    ann: Caller
    bob: Caller
    rpcs: dict[str, Method]
    ids: Ids

    async def of_ann(self, name: str, request: Any) -> list[Any]:
        return await self.ann.responses(self.rpcs[f"{API}{name}"], request)

    async def as_bob(self, path: str, ids: Ids, number: int) -> str:
        """Makes bob's call of a row of the table; returns the outcome without the ids."""
        text = await self.bob.outcome(self.rpcs[path], TABLE[path](ids)[number])
        for name, value in sorted(asdict(ids).items(), key=lambda item: -len(item[1])):
            text = text.replace(value, f"<{name}>")
        return text

    async def clean_up(self) -> None:
        """Ends the sessions that bob has made."""
        for ids in (self.ids, unused()):
            for session_id in _sessions(ids):
                request = pb.EndSessionRequest(session_id=session_id, allow_missing=True)
                await self.bob.outcome(self.rpcs[f"{API}EndSession"], request)

    async def state_of_ann(self) -> str:
        """Returns all that ann has: her sessions with their messages, and what runs."""
        listed = await self.of_ann("ListSessions", pb.ListSessionsRequest())
        sessions = [each.id for each in listed[0].sessions]
        found = [_plain(listed[0])]
        for session_id in sessions:
            request = pb.GetSessionRequest(session_id=session_id, view=pb.SESSION_VIEW_FULL)
            found.append(_plain((await self.of_ann("GetSession", request))[0]))
        return json.dumps(found)


@asynccontextmanager
async def side_by_side(
    daemon: StartDaemon, tmp_path: Path, role: Role, *flags: str
) -> AsyncIterator[Side]:
    """Starts a daemon in which ann has sessions, completions that ran and run, and a batch."""
    file = tmp_path / "tokens"
    lines = {"ann": tokens.create(ANN, Role.ADMIN), "bob": tokens.create("bob", role)}
    file.write_text("".join(f"{line}\n" for _, line in lines.values()))
    slow = ("--engine", "echo", "--echo-delay-seconds", "0.02")
    async with (
        daemon(*slow, "--tokens-file", str(file), *flags) as running,
        grpc.aio.insecure_channel(running.socket) as channel,
    ):
        ann, bob = (Caller(channel, lines[name][0]) for name in ("ann", "bob"))
        rpcs = {method.path: method for method in await served(bob)}
        side = Side(running, ann, bob, rpcs, unused())
        live = ann.call(
            rpcs[f"{API}Complete"],
            turn(" ".join([SECRET] * 10_000), "live-of-ann", request_id="live-request-of-ann"),
        )
        side.ids = await _everything(side, live)
        try:
            yield side
        finally:
            live.cancel()


async def _everything(side: Side, live: Any) -> Ids:
    label = "label-of-ann"
    create = pb.CreateSessionRequest(
        session_id="session-of-ann",
        labels={"of": label},
        system_prompt=SECRET,
        # Long, so that whatever reads it takes longer than for a session that is not there.
        messages=[
            pb.Message(role=role, content=SECRET * 40)
            for _ in range(300)
            for role in (pb.ROLE_USER, pb.ROLE_ASSISTANT)
        ],
    )
    await side.of_ann("CreateSession", create)
    done = await side.of_ann(
        "Complete", turn(SECRET, "session-of-ann", request_id="request-of-ann")
    )
    await side.of_ann("Complete", turn(SECRET, request_id="stateless-of-ann"))
    items = pb.BatchCompleteRequest(items=[turn(SECRET, "batch-of-ann")])
    batch = await side.of_ann("BatchComplete", items)
    expired = pb.CreateSessionRequest(
        session_id="expired-of-ann", idle_timeout=Duration(nanos=1_000_000)
    )
    await side.of_ann("CreateSession", expired)
    await side.of_ann("CreateSession", pb.CreateSessionRequest(session_id="ended-of-ann"))
    await side.of_ann("EndSession", pb.EndSessionRequest(session_id="ended-of-ann"))
    page = (await side.of_ann("ListSessions", pb.ListSessionsRequest(page_size=1)))[0]
    request = pb.GetSessionRequest(
        session_id="session-of-ann", view=pb.SESSION_VIEW_FULL, page_size=2
    )
    history = (await side.of_ann("GetSession", request))[0]
    assert page.next_page_token
    assert history.next_page_token
    return Ids(
        "session-of-ann", "live-of-ann", "expired-of-ann", "ended-of-ann",
        done[0].event.started.completion_id,
        (await anext(aiter(live))).event.started.completion_id,
        batch[0].result.completion.completion_id,
        "request-of-ann", "live-request-of-ann", "stateless-of-ann",
        page.next_page_token, history.next_page_token, label,
    )  # fmt: skip


@contextmanager
def _store(kind: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        stores = {"memory": "memory", "sqlite": f"sqlite:{tmp_path}/s.db"}
        if kind == "postgres":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp"))
            Path(folder).chmod(0o755)
            server = stack.enter_context(postgres.running(Path(folder) / "server"))
            stores[kind] = f"postgresql://ruvd@/postgres?host={server.directory}"
        yield ("--store", stores[kind])


@pytest.mark.parametrize(
    ("kind", "role"),
    [*((kind, role) for kind in ("memory", "sqlite") for role in Role), ("postgres", Role.USER)],
)
async def test_no_rpc_tells_anything_of_another_tenants_ids(
    daemon: StartDaemon, tmp_path: Path, kind: str, role: Role
) -> None:
    with _store(kind, tmp_path) as store:
        await _walk(daemon, tmp_path, role, *store)


async def _walk(daemon: StartDaemon, tmp_path: Path, role: Role, *store: str) -> None:
    async with side_by_side(daemon, tmp_path, role, *store) as side:
        assert set(side.rpcs) == set(TABLE), "each RPC needs a row in the table of requests"
        before = await side.state_of_ann()
        assert SECRET in before
        for path, requests in TABLE.items():
            denied = []
            for number in range(len(requests(side.ids))):
                found = await side.as_bob(path, side.ids, number)
                missing = await side.as_bob(path, unused(), number)
                assert found == missing, path
                assert SECRET not in found, path
                assert "-of-ann" not in found, path
                denied.append("PERMISSION_DENIED" in found)
            assert all(denied) == (role not in ROLES.get(path, Role)), path
            await side.clean_up()
        assert await side.state_of_ann() == before, "bob has changed nothing of ann's"


async def test_the_lists_and_metrics_of_a_tenant_have_nothing_of_another(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with side_by_side(daemon, tmp_path, Role.ADMIN) as side:
        metrics = await side.bob.responses(
            side.rpcs[f"{API}GetSessionMetrics"], pb.GetSessionMetricsRequest()
        )
        figures = MessageToDict(metrics[0].metrics)
        assert not {name: figure for name, figure in figures.items() if figure}
        listed = await side.bob.outcome(side.rpcs[f"{API}ListSessions"], pb.ListSessionsRequest())
        assert listed == "[{}]"
        # An administrator of the daemon sees how much every tenant has, and nothing else of it.
        tenants = await side.bob.responses(
            side.rpcs[f"{ADMIN}ListTenants"], admin_pb.ListTenantsRequest()
        )
        assert [each.name for each in tenants[0].tenants] == [ANN]
        assert "-of-ann" not in str(tenants[0])


async def test_the_first_prompt_of_a_tenant_is_cached_by_no_other(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with side_by_side(daemon, tmp_path, Role.USER) as side:

        async def cached(caller: Caller, path: str, request: Any) -> int:
            is_batch = path.endswith("BatchComplete")
            response = (await caller.responses(side.rpcs[path], request))[0 if is_batch else -1]
            ended = response.result.completion if is_batch else response.event
            assert ended.finished.usage.HasField("cached_tokens")
            return int(ended.finished.usage.cached_tokens)

        def prompts(word: str) -> list[tuple[str, Any]]:
            text = f"{word} a long prompt that both of them send"
            item = turn(f"item {text}")
            return [
                (f"{API}Complete", turn(f"stateless {text}")),
                (f"{API}Complete", turn(f"hello {text}", f"s{word}", system_prompt=f"{word} you")),
                (f"{API}BatchComplete", pb.BatchCompleteRequest(items=[item])),
            ]

        for path, request in prompts("one"):
            assert await cached(side.ann, path, request) == 0
            assert await cached(side.ann, path, request) > 0, "the engine caches it for ann"
            assert await cached(side.bob, path, request) == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_refusals_take_as_long_for_another_tenants_ids_as_for_unused_ones(
    daemon: StartDaemon, tmp_path: Path, kind: str
) -> None:
    """The calls alternate, so a busy machine slows both down. It may still spoil a round."""
    with _store(kind, tmp_path) as store:
        await _time(daemon, tmp_path, *store)


async def _time(daemon: StartDaemon, tmp_path: Path, *store: str) -> None:
    async with side_by_side(daemon, tmp_path, Role.USER, *store) as side:
        refused = [
            (path, number)
            for path in TABLE
            if path.startswith(API)
            for number in range(len(TABLE[path](side.ids)))
            if "_NOT_FOUND" in await side.as_bob(path, side.ids, number)
        ]
        await side.clean_up()
        assert len(refused) > 20

        async def ratio(path: str, number: int) -> float:
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(TIMED_CALLS):
                for ids, taken in zip((side.ids, unused()), seconds, strict=True):
                    began = time.perf_counter()
                    await side.as_bob(path, ids, number)
                    taken.append(time.perf_counter() - began)
            foreign, missing = map(statistics.median, seconds)
            return max(foreign / missing, missing / foreign)

        for path, number in refused:
            for _ in range(3):
                if (found := await ratio(path, number)) < MOST_TIMES:
                    break
            assert found < MOST_TIMES, (path, number)
            await asyncio.sleep(0)
