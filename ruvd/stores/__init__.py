"""Where sessions live: one adapter a technology, each the `Store` of `ruvd.core.ports`.

`memory` forgets with the process, `sqlite` keeps a file. Nothing is imported from here, so that
a daemon loads only the adapter it was told to use.
"""
