"""Sessions: their lifetime, their turns, their context window and their changes."""
