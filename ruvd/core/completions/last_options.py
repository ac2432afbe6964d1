"""The options of the last turn of sessions, which decide the prompt beside the messages.

A request for a summary has the same tools as the turn before it, so that the engine's cache hits.
They are not stored: after a restart, the first summary of a session may miss the cache.
"""

from collections import OrderedDict

from ruvd.core.options import CompletionOptions

# What is kept in all. Tools with large schemas may take most of it.
_MAX_BYTES = 8 << 20
_ENTRY_BYTES = 1000


class LastOptions:
    """The options of the sessions that had a turn lately."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._options: OrderedDict[str, CompletionOptions] = OrderedDict()
        self._bytes = 0

    def get(self, session_id: str) -> CompletionOptions:
        """Returns the options of the session's last turn, or the default ones if unknown."""
        return self._options.get(session_id) or CompletionOptions()

    def put(self, session_id: str, options: CompletionOptions) -> None:
        """Keeps the options of a turn."""
        self.drop(session_id)
        self._options[session_id] = options
        self._bytes += _size(options)
        while self._bytes > self._max_bytes:
            self._bytes -= _size(self._options.popitem(last=False)[1])

    def drop(self, session_id: str) -> None:
        """Forgets a session."""
        options = self._options.pop(session_id, None)
        if options is not None:
            self._bytes -= _size(options)


def _size(options: CompletionOptions) -> int:
    texts = sum(len(tool.parameters) + len(tool.description) for tool in options.tools)
    return _ENTRY_BYTES + texts + len(str(options.extra_body)) + 16 * len(options.logit_bias)
