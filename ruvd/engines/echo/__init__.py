"""The deterministic engine, which answers with the last user message."""
