"""The signals that the standard OTEL_* variables ask to export, and their protocols.

This module does not import OpenTelemetry, because it decides whether to import it at all. Nothing
is exported unless an endpoint is set. The protocol is gRPC unless OTEL_EXPORTER_OTLP_PROTOCOL is
http/protobuf, as in OpenTelemetry's own Python distribution.
"""

import logging
from collections.abc import Mapping, MutableMapping

_log = logging.getLogger("ruvd.telemetry")
_PROTOCOLS = ("grpc", "http/protobuf")


def unset_empty(environment: MutableMapping[str, str]) -> None:
    """Removes empty OTEL_* variables, which the specification has count as unset.

    The SDK fails at some of them instead, or takes 0 for an empty number.
    """
    for name in [name for name in environment if name.startswith("OTEL_")]:
        if not environment[name]:
            del environment[name]


def disabled(environment: Mapping[str, str]) -> bool:
    """Returns whether OTEL_SDK_DISABLED turns telemetry off."""
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def protocols(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the protocol of each signal that is to be exported: of `traces` and `metrics`."""
    if disabled(environment):
        return {}
    found = {signal: _protocol(environment, signal.upper()) for signal in ("traces", "metrics")}
    return {signal: protocol for signal, protocol in found.items() if protocol}


def logs_protocol(environment: Mapping[str, str]) -> str:
    """Returns the protocol for log records; empty if the variables name no collector for them."""
    return "" if disabled(environment) else _protocol(environment, "LOGS")


def _protocol(environment: Mapping[str, str], signal: str) -> str:
    variable = f"OTEL_{signal}_EXPORTER"
    exporter = environment.get(variable, "").strip()
    if exporter not in ("", "otlp"):
        if exporter != "none":
            _log.warning("%s is %r: only otlp and none are supported", variable, exporter)
        return ""
    prefix = "OTEL_EXPORTER_OTLP"
    endpoints = (f"{prefix}_{signal}_ENDPOINT", f"{prefix}_ENDPOINT")
    if not any(environment.get(name) for name in endpoints):
        if exporter:
            _log.warning("%s is set, but %s_ENDPOINT is not", variable, prefix)
        return ""
    variables = (f"{prefix}_{signal}_PROTOCOL", f"{prefix}_PROTOCOL")
    values = (environment.get(name) for name in variables)
    protocol = next((value.strip() for value in values if value), _PROTOCOLS[0])
    if protocol not in _PROTOCOLS:
        supported = " and ".join(_PROTOCOLS)
        _log.warning("the OTLP protocol is %r: only %s are supported", protocol, supported)
        return ""
    return protocol
