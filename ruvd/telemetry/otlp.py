"""Spans in OTLP, by OpenTelemetry's generated classes: at a sixth of what the SDK's encoder takes.

The SDK makes every attribute anew. Most of ours have been there before, so they are kept, and what
is the same for all spans, resource and scope, is the SDK's encoding of it, made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Encoded
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags, Status
from opentelemetry.trace import SpanKind

from ruvd.telemetry.spans import Attributes, Ids, Span, Value

# So many attributes are kept, and of so many bytes.
_KEPT = 2000
_LONGEST = 200
_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_KINDS = {kind: Encoded.SpanKind.Value(f"SPAN_KIND_{kind.name}") for kind in SpanKind}
_FAILED = Status(code=Status.STATUS_CODE_ERROR)
_FINE = Status()


class Encoder:
    """Encodes spans of one tracer, on one thread."""

    def __init__(self) -> None:
        self._same: ExportTraceServiceRequest | None = None
        self._known: dict[tuple[str, type, Value], bytes] = {}

    def request(self, spans: Sequence[Span]) -> ExportTraceServiceRequest:
        """What exports the spans."""
        if self._same is None:
            self._same = encode_spans([spans[0].readable()])
            del self._same.resource_spans[0].scope_spans[0].spans[:]
        request = ExportTraceServiceRequest()
        request.CopyFrom(self._same)
        encoded = request.resource_spans[0].scope_spans[0].spans
        for span in spans:
            self._add(span, encoded)
        return request

    def _add(self, span: Span, spans: Any) -> None:
        attributes = span.attributes()
        known, new = self._attributes(attributes)
        spans.add(
            trace_id=span.trace_id,
            span_id=span.span_id,
            trace_state=span.state,
            parent_span_id=span.parent_id,
            name=span.name,
            kind=_KINDS[span.kind],
            start_time_unix_nano=span.began,
            end_time_unix_nano=span.ended,
            attributes=new,
            links=[_link(*each) for each in span.links],
            status=_FAILED if span.error else _FINE,
            dropped_attributes_count=getattr(attributes, "dropped", 0),
            flags=_REMOTE if span.remote else _LOCAL,
        ).MergeFromString(known)

    def _attributes(self, attributes: Attributes) -> tuple[bytes, list[KeyValue]]:
        """Those that are kept, as a span's bytes that has nothing else, and the others."""
        known, new = [], []
        for name, value in attributes.items():
            key = (name, type(value), value)
            kept = self._known.get(key)
            if kept is not None:
                known.append(kept)
                continue
            pair = KeyValue(key=name, value=_value(value))
            new.append(pair)
            if not isinstance(value, float) and pair.ByteSize() <= _LONGEST:
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[key] = Encoded(attributes=[pair]).SerializeToString()
        # Messages one after the other are one message that has the fields of all.
        return b"".join(known), new


def _link(ids: Ids, attributes: Attributes) -> Encoded.Link:
    pairs = [KeyValue(key=name, value=_value(value)) for name, value in attributes.items()]
    return Encoded.Link(trace_id=ids[0], span_id=ids[1], attributes=pairs, flags=_LOCAL)


def _value(value: Value) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case str():  # of an answer, it may be half a character
            return AnyValue(string_value=value.encode(errors="replace").decode())
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case _:
            return AnyValue(array_value=ArrayValue(values=map(_value, value)))
