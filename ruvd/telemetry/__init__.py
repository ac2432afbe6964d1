"""Traces and metrics. OpenTelemetry and Prometheus are imported only in this package."""
