"""The adapters of the `Engine` port: `llama` (embedded) and `echo` (deterministic).

Each is opened by its name, and its libraries are imported only then.
"""
