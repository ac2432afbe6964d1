"""The adapters of the `Store` port: `memory` loses everything at exit, `sqlite` keeps a file.

This package imports neither of them, so that a daemon loads only the one that it is configured for.
"""
