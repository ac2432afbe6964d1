"""HTTP in: the listener of ASGI applications, and the check of their callers."""
