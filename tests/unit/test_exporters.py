"""The SDK's exporters: variables, outages and the SDK's own warnings."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk import environment_variables
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ruvd.telemetry import conventions, environment
from ruvd.telemetry.exporters import Outage, Telemetry, reporting_exporter

OUTAGE = "telemetry is not exported; what does not fit into its queue is dropped"
RECOVERY = "telemetry is exported again"


@pytest.fixture(autouse=True)
def _sdk_logger() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "opentelemetry.sdk")]
    before = [(each.level, each.propagate, each.handlers) for each in loggers]
    yield
    for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
        each.level, each.propagate, each.handlers = level, propagate, handlers


async def test_a_queue_that_is_smaller_than_the_default_batch_is_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    telemetry = await asyncio.to_thread(Telemetry, {"traces": "grpc"}, "1", prometheus=False)
    await telemetry.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_an_invalid_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"\w"):
        Telemetry({"traces": "grpc"}, "1", prometheus=False)


async def test_every_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in dir(environment_variables) if name.startswith("OTEL_")]
    assert "OTEL_BSP_SCHEDULE_DELAY" in names
    for name in (*names, conventions.OPT_IN, conventions.CAPTURE_CONTENT):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    environment.unset_empty(os.environ)
    protocols = environment.protocols(os.environ)
    assert protocols == {"traces": "grpc", "metrics": "grpc"}
    telemetry = await asyncio.to_thread(Telemetry, {"traces": "grpc"}, "1", prometheus=False)
    await telemetry.close()
    assert conventions.chosen(os.environ) == conventions.chosen({})


class Failing(SpanExporter):
    raises = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.raises:
            raise RuntimeError("broken")
        return SpanExportResult.SUCCESS


def test_an_export_that_raises_is_an_outage_until_one_succeeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = reporting_exporter(Failing, "traces", Outage())
    with caplog.at_level(logging.INFO, "ruvd.telemetry"):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                exporter.export(())
        exporter.raises = False
        for _ in range(2):
            exporter.export(())
    assert caplog.messages == [OUTAGE, RECOVERY]


def test_a_warning_of_the_sdk_is_logged_once_until_an_outage_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage, sdk = Outage(), logging.getLogger("opentelemetry.sdk.trace")
    exporter = reporting_exporter(Failing, "traces", outage)
    with caplog.at_level(logging.WARNING, "ruvd.telemetry"):
        for _ in range(3):
            sdk.warning("Queue full, dropping %s.", "Span")
        with pytest.raises(RuntimeError):
            exporter.export(())
        exporter.raises = False
        exporter.export(())
        sdk.warning("Queue full, dropping %s.", "Span")
        logging.getLogger("opentelemetry.exporter").warning("retrying")
    dropped = "OpenTelemetry: Queue full, dropping Span."
    assert caplog.messages == [dropped, OUTAGE, dropped]
