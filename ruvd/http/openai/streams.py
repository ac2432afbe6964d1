"""The end of a stream that has failed after its beginning."""

from ruvd.http.openai.calls import Call
from ruvd.http.openai.endpoint import renamed
from ruvd.http.openai.errors import respond_to


async def failed(call: Call, error: Exception) -> None:
    """Sends the error as an event, for which the official clients raise an APIError."""
    await call.write({"error": respond_to(renamed(error, call)).error})
