"""Spans: the SDK's sampler, ids, processor and exporters, with a span of our own between them.

The SDK's span takes 50 to 80 microseconds to begin and end, for locks, limits and the checking of
attributes; a completion has two or three of them. This one is written by one task at a time, its
attributes are ours and of the right types, and it is the SDK's `ReadableSpan` itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.span import Span as AnySpan

_UNSET = Status(StatusCode.UNSET)
# By whether a span is sampled, and whether its trace id is random.
_FLAGS = [
    TraceFlags(sampled | random)
    for random in (0, TraceFlags.RANDOM_TRACE_ID)
    for sampled in (0, TraceFlags.SAMPLED)
]


class Tracer(trace.Tracer):
    """Makes spans as the provider's own tracer would, and hands them to `processor`."""

    def __init__(
        self, provider: TracerProvider, processor: SpanProcessor, scope: InstrumentationScope
    ) -> None:
        self.processor = processor
        self.resource = provider.resource
        self.scope = scope
        limits = SpanLimits()  # by the variables of the specification
        self._most_attributes = limits.max_span_attributes
        self._most_characters = limits.max_span_attribute_length
        self._sampler = provider.sampler
        # The usual one, whose decision needs no look at anything else.
        self._by_parent = self._sampler is DEFAULT_ON
        self._ids = provider.id_generator
        self._is_random = self._ids.is_trace_id_random()

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002  # the API's
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002
    ) -> AnySpan:
        """See `opentelemetry.trace.Tracer.start_span`."""
        above = trace.get_current_span(context).get_span_context()
        parent = above if above.is_valid else None
        trace_id = parent.trace_id if parent else self._ids.generate_trace_id()
        sampled = self._sampler.should_sample(context, trace_id, name, kind, attributes, links)
        decision: Any = sampled.decision  # whose methods have no types
        flags = TraceFlags.SAMPLED if decision.is_sampled() else TraceFlags.DEFAULT
        is_random = parent.trace_flags.random_trace_id if parent else self._ids.is_trace_id_random()
        if is_random:
            flags |= TraceFlags.RANDOM_TRACE_ID
        own = SpanContext(
            trace_id,
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=TraceFlags(flags),
            trace_state=sampled.trace_state,
        )
        if not decision.is_recording():
            return NonRecordingSpan(own)
        return Span(
            self,
            name,
            own,
            parent,
            kind,
            dict(attributes or {}),
            list(links or ()),
            start_time or time.time_ns(),
        )

    def start_as_current_span(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered: `use_span` says what is to be recorded of an exception."""
        raise NotImplementedError

    def bounded(self, attributes: dict[str, Any]) -> Mapping[str, Any]:
        """Attributes within the limits that the variables set."""
        most = self._most_attributes
        if self._most_characters is None and (most is None or len(attributes) <= most):
            return attributes
        return BoundedAttributes(most, attributes, max_value_len=self._most_characters)


class Span(AnySpan, ReadableSpan):
    """A span that is recorded, and what is exported of it: the SDK's own makes a copy at its end.
    No method does anything after `end`."""

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: list[Link],
        start_time: int,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._own_context = context
        self._attributes = self._own_attributes = attributes
        self._events = ()
        self._links = self._own_links = links
        self._status = _UNSET
        self._resource = tracer.resource
        self._instrumentation_scope = tracer.scope
        self._start_time = start_time
        self._end_time = None

    def get_span_context(self) -> SpanContext:
        """See `opentelemetry.trace.Span`, as for every method."""
        return self._own_context

    def is_recording(self) -> bool:  # noqa: D102
        return self._end_time is None

    def set_attribute(self, key: str, value: Any) -> None:  # noqa: D102
        self._own_attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:  # noqa: D102
        self._own_attributes.update(attributes)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:  # noqa: D102
        self._own_links.append(Link(context, attributes))

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:  # noqa: D102
        self._status = status if isinstance(status, Status) else Status(status, description)

    def update_name(self, name: str) -> None:  # noqa: D102
        self._name = name

    def add_event(self, *_: Any, **__: Any) -> None:
        """Nothing of ours has events."""

    def record_exception(self, *_: Any, **__: Any) -> None:
        """What a request failed with is in its attributes; tracebacks are the log's."""

    def end(self, end_time: int | None = None) -> None:  # noqa: D102
        if self._end_time is None:
            self._end_time = end_time or time.time_ns()
            self._attributes = self._tracer.bounded(self._own_attributes)
            self._tracer.processor.on_end(self)
