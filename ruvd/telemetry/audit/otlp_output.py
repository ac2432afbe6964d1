"""The output of audit records to a collector, as OpenTelemetry logs over OTLP.

Records are exported by the writer itself and not by the SDK's batch processor, which would drop
them without a word when its queue is full.
"""

import importlib
import time
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ruvd.telemetry.audit.chain import Position
from ruvd.telemetry.audit.outputs import Prepared
from ruvd.telemetry.exporters import Outage, build_resource


class OtlpOutput:
    """Exports records. Each daemon begins a chain of its own.

    Making one blocks, because it imports the exporter.
    """

    def __init__(self, protocol: str, version: str) -> None:
        package = f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}"
        module = importlib.import_module(f"{package}._log_exporter")
        Outage()  # keeps the SDK from logging every failed export: the audit log reports outages
        self._exporter: Any = module.OTLPLogExporter()
        self._resource = build_resource(version)
        self._scope = InstrumentationScope("ruvd.audit", version)

    def open(self) -> tuple[Position, bytes, bool]:
        """Returns the beginning of a chain."""
        return Position(), b"", True

    def prepare(self) -> Prepared:
        """Does nothing."""
        return Prepared()

    def write(self, data: bytes) -> int:
        """Exports all lines or none of them."""
        result = self._exporter.export([self._record(line) for line in data.splitlines()])
        if result is not type(result).SUCCESS:
            raise OSError("the collector does not take the records")
        return len(data)

    def close(self) -> None:
        """Ends the exporter, and an export that waits for the collector."""
        self._exporter.shutdown()

    def _record(self, line: bytes) -> ReadableLogRecord:
        record = LogRecord(
            timestamp=time.time_ns(),
            severity_number=SeverityNumber.INFO,
            body=line.decode(),
            event_name="ruvd.audit",
        )
        return ReadableLogRecord(record, self._resource, self._scope)
