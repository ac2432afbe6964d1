"""Which of OpenTelemetry's signals the environment asks to export, and by which protocol.

Pure and cheap, because it is asked before anything of OpenTelemetry is imported. Nothing is
exported where no endpoint is set. The protocol is gRPC unless OTEL_EXPORTER_OTLP_PROTOCOL says
http/protobuf, as in OpenTelemetry's own Python distribution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

_log = logging.getLogger("ruvd.telemetry")
_PROTOCOLS = ("grpc", "http/protobuf")


def disabled(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry is to do nothing at all."""
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def protocols(environment: Mapping[str, str]) -> dict[str, str]:
    """By signal, `traces` and `metrics`, the protocol; what is not to be exported is not in it."""
    if disabled(environment):
        return {}
    found = {signal: _protocol(environment, signal.upper()) for signal in ("traces", "metrics")}
    return {signal: protocol for signal, protocol in found.items() if protocol}


def _protocol(environment: Mapping[str, str], signal: str) -> str:
    variable = f"OTEL_{signal}_EXPORTER"
    exporter = environment.get(variable, "").strip()
    if exporter not in ("", "otlp"):
        if exporter != "none":
            _log.warning("%s is %r: only otlp and none are known", variable, exporter)
        return ""
    prefix = "OTEL_EXPORTER_OTLP"
    endpoints = (f"{prefix}_{signal}_ENDPOINT", f"{prefix}_ENDPOINT")
    if not any(environment.get(each) for each in endpoints):
        if exporter:
            _log.warning("%s is set, but %s_ENDPOINT is not", variable, prefix)
        return ""
    named = (environment.get(f"{prefix}_{each}") for each in (f"{signal}_PROTOCOL", "PROTOCOL"))
    protocol = next((each.strip() for each in named if each), _PROTOCOLS[0])
    if protocol not in _PROTOCOLS:
        _log.warning("OTLP's protocol is %r: only %s are known", protocol, " and ".join(_PROTOCOLS))
        return ""
    return protocol
