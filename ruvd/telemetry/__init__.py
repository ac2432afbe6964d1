"""Traces and metrics: OpenTelemetry and Prometheus live here."""
