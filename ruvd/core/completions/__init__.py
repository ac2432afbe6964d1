"""Completions: one answer, its turn, its events, and batches of them."""
