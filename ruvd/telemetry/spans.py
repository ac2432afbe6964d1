"""Spans: noted while they last, and put together only when they are exported.

The SDK's span takes 50 to 80 microseconds to begin and end, for locks, limits and the checking of
attributes; a completion has two or three of them. This one is written by one task at a time. What
it says of itself is asked for on the exporter's thread, many spans at a time, which costs a
quarter of what it does between two chunks of an answer. The sampler is the SDK's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

Value: TypeAlias = str | int | float | bool | Sequence[str]
Attributes: TypeAlias = Mapping[str, Value]
Ids: TypeAlias = tuple[bytes, bytes]

SAMPLED: int = TraceFlags.SAMPLED
_RANDOM: int = TraceFlags.RANDOM_TRACE_ID
_NOTHING: Attributes = {}

# The span that a task is within; a task begins within that of whoever began it.
current: ContextVar[Span | None] = ContextVar("ruvd_span", default=None)


class Caller(NamedTuple):
    """The span of whoever called us, as it was told."""

    trace_id: bytes
    span_id: bytes
    flags: int
    state: str


class Tracer:
    """Places spans in traces and hands those that have ended to `ended`.

    Without `ended` nothing is recorded: a span then stands for the caller's, if there is one.
    """

    def __init__(
        self,
        provider: TracerProvider | None = None,
        scope: InstrumentationScope | None = None,
        ended: Callable[[Span], None] | None = None,
    ) -> None:
        self.ended = ended if provider else None
        self.resource = provider.resource if provider else Resource.get_empty()
        self.scope = scope
        self._sampler = provider.sampler if provider else DEFAULT_ON
        # The usual one, whose decision needs no look at anything else.
        self._by_parent = self._sampler is DEFAULT_ON
        limits = SpanLimits()  # by the variables of the specification
        self._most_attributes = limits.max_span_attributes
        self._most_characters = limits.max_span_attribute_length

    def place(self, span: Span, above: Span | Caller | None) -> None:
        """Give a span its ids, and decide whether it is recorded."""
        if above is not None and above.trace_id:
            span.trace_id, span.state, span.flags = above.trace_id, above.state, above.flags
            span.parent_id = above.span_id
        else:
            above = None
            span.trace_id = _id(128)
            span.flags = _RANDOM | SAMPLED if self._by_parent else _RANDOM
        span.span_id = _id(64)
        if not self._by_parent and not isinstance(above, Span):
            self._decide(span, above)
        span.recorded = bool(span.flags & SAMPLED)

    def _decide(self, span: Span, caller: Caller | None) -> None:
        """Ask the sampler; a span below one of ours has its decision."""
        context = Context()
        if caller is not None:
            known = trace.NonRecordingSpan(_sdk_context(caller, is_remote=True))
            context = trace.set_span_in_context(known, context)
        trace_id = int.from_bytes(span.trace_id)
        result = self._sampler.should_sample(context, trace_id, span.name, span.kind)
        decision: Any = result.decision  # whose methods have no types
        span.flags = (span.flags & ~SAMPLED) | (SAMPLED if decision.is_sampled() else 0)
        span.state = result.trace_state.to_header() if result.trace_state else ""

    def bounded(self, attributes: dict[str, Value]) -> Attributes:
        """Attributes within the limits that the variables set."""
        most = self._most_attributes
        if self._most_characters is None and (most is None or len(attributes) <= most):
            return attributes
        bounded: Any = BoundedAttributes(most, attributes, max_value_len=self._most_characters)
        return cast("Attributes", bounded)


class Span:
    """One span, below `above`. `error` is what it failed with, `known` what it says of itself;
    a kind of span that knows more overrides `facts`."""

    __slots__ = ("began", "ended", "error", "flags", "kind", "known", "links", "name", "parent_id",
                 "recorded", "remote", "span_id", "state", "trace_id", "tracer")  # fmt: skip

    trace_id: bytes
    span_id: bytes
    flags: int
    recorded: bool

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        above: Span | Caller | None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        known: Attributes = _NOTHING,
    ) -> None:
        self.tracer = tracer
        self.name = name
        self.kind = kind
        self.known = known
        self.error = ""
        self.links: Sequence[tuple[Ids, Attributes]] = ()
        self.began = time.time_ns()
        self.ended = 0
        self.parent_id = b""
        self.remote = isinstance(above, Caller)
        self.state = ""
        if tracer.ended is not None:
            tracer.place(self, above)
            return
        self.recorded = False
        if above is not None:
            self.trace_id, self.span_id, self.flags, self.state = (
                above.trace_id, above.span_id, above.flags, above.state,
            )  # fmt: skip
        else:
            self.trace_id = self.span_id = b""
            self.flags = 0

    def facts(self) -> dict[str, Value]:
        """What it says of itself; asked for once it has ended, on another thread."""
        return dict(self.known)

    def attributes(self) -> Attributes:
        """Its facts and its error, within the limits."""
        facts = self.facts()
        if self.error:
            facts["error.type"] = self.error
        return self.tracer.bounded(facts)

    def link(self, ids: Ids, attributes: Attributes) -> None:
        """Point at another span."""
        self.links = (*self.links, (ids, attributes))

    def end(self, ended: int = 0) -> None:
        """It is over, now or at a time (ns); nothing is to be changed afterwards."""
        if not self.ended:
            self.ended = ended or time.time_ns()
            if self.recorded and self.tracer.ended is not None:
                self.tracer.ended(self)

    def readable(self) -> ReadableSpan:
        """What the SDK would have made of it."""
        parent = None
        if self.parent_id:
            above = Caller(self.trace_id, self.parent_id, self.flags, self.state)
            parent = _sdk_context(above, is_remote=self.remote)
        links = [
            Link(_sdk_context(Caller(*ids, self.flags, ""), is_remote=False), attributes)
            for ids, attributes in self.links
        ]
        return ReadableSpan(
            self.name,
            _sdk_context(self, is_remote=False),
            parent,
            self.tracer.resource,
            self.attributes(),
            (),
            links,
            self.kind,
            status=Status(StatusCode.ERROR if self.error else StatusCode.UNSET),
            start_time=self.began,
            end_time=self.ended,
            instrumentation_scope=self.tracer.scope,
        )


def _id(bits: int) -> bytes:
    """A random id, which is not 0."""
    return (random.getrandbits(bits) or 1).to_bytes(bits // 8)  # as the SDK's are


def _sdk_context(span: Span | Caller, *, is_remote: bool) -> SpanContext:
    return SpanContext(
        int.from_bytes(span.trace_id),
        int.from_bytes(span.span_id),
        is_remote=is_remote,
        trace_flags=TraceFlags(span.flags),
        trace_state=TraceState.from_header([span.state]) if span.state else None,
    )
