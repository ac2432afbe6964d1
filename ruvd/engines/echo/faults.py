"""Errors on demand, so that a client's handling of each can be tested on a real daemon.

With `echo_faults`, a user message of the form `!fault REASON TEXT` is answered with TEXT, which may
be nothing, and then with the error of that reason as if the engine had raised it. A reason is one
of the wire's (`ENGINE_TIMEOUT`); an unknown one is INVALID_REQUEST, as is the reason itself.
"""

from __future__ import annotations

from ruvd.core import errors
from ruvd.core.errors import FieldViolation, InvalidRequest, RuvdError

_MARK = "!fault "
_ERRORS = {each.reason(): each for each in RuvdError.__subclasses__()}


def split(said: str) -> tuple[str, Exception | None]:
    """What to say, and the error to end with; None for a message that asks for none."""
    if not said.startswith(_MARK):
        return said, None
    reason, _, text = said.removeprefix(_MARK).partition(" ")
    if reason == "INTERNAL":
        return text, RuntimeError("a fault that was asked for")
    kind = _ERRORS.get(reason)
    if kind is None or kind is errors.InvalidRequest:
        violation = FieldViolation("messages[0].content", f"asks for the fault {reason}")
        return text, InvalidRequest([violation])
    return text, kind("a fault that was asked for")
