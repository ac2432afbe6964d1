"""The console: pages over HTTP that show a daemon's sessions, streams and health. Read-only."""
