"""The adapters of the `Engine` port: `llama` (embedded), `openai` (any server with its API) and
`echo` (deterministic).

Each is opened by its name, and its libraries are imported only then.
"""
