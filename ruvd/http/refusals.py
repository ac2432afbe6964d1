"""Requests that are refused because of HTTP, and not because of what they ask for."""

from ruvd.core.errors import FieldViolation, InvalidRequest


class Refused(InvalidRequest):
    """A refusal with a status of its own and a code of OpenAI's.

    `allow` has the methods that the path has instead, for the status 405.
    """

    def __init__(
        self, status: int, code: str, text: str, param: str = "request", *, allow: str = ""
    ) -> None:
        super().__init__([FieldViolation(param, text)])
        self.status = status
        self.code = code
        self.allow = allow

    @classmethod
    def reason(cls) -> str:
        """Returns the reason of an invalid request."""
        return InvalidRequest.reason()


class ClientGone(Exception):
    """The client has closed the connection."""
