"""Completions: one answer, its turn, its events, and many of them side by side."""
