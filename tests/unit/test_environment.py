"""The variables and settings that turn telemetry on."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ruvd.config.settings import Settings
from ruvd.telemetry.environment import protocols

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environment", "exported"),
    [
        ({}, {}),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {}),
        (ENDPOINT, {"traces": "grpc", "metrics": "grpc"}),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, {}),
        (ENDPOINT | {"OTEL_METRICS_EXPORTER": "none"}, {"traces": "grpc"}),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "zipkin"}, {"metrics": "grpc"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, {"traces": "grpc"}),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            {"traces": "http/protobuf", "metrics": "http/protobuf"},
        ),
        (
            ENDPOINT | {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"},
            {"traces": "grpc", "metrics": "http/protobuf"},
        ),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, {}),
    ],
)
def test_a_signal_is_exported_if_an_endpoint_is_set_and_no_variable_disables_it(
    environment: dict[str, str], exported: dict[str, str]
) -> None:
    assert protocols(environment) == exported


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "unix:/run/metrics", "9464", "[::]:1"])
def test_metrics_are_served_neither_to_other_machines_nor_at_an_invalid_address(
    address: str,
) -> None:
    with pytest.raises(ValidationError):
        Settings(metrics_listen=address)


def test_metrics_are_served_on_loopback_or_where_remote_access_is_allowed() -> None:
    assert Settings(metrics_listen="127.0.0.1:9464").metrics_listen == "127.0.0.1:9464"
    Settings(metrics_listen="0.0.0.0:9464", allow_remote_insecure=True)
    assert Settings().metrics_listen == ""
