"""The deterministic engine: it answers with the last message."""
