"""The adapters of the `Engine` port: `llama` (embedded), `openai` (any server with its API) and
`echo` (deterministic).

An adapter's modules and libraries are imported only when it is chosen.
"""
