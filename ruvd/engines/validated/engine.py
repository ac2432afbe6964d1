"""An engine around another one that checks structured answers.

Servers follow a JSON Schema as far as they can: llama.cpp leaves out what its grammars cannot
express, and some servers ignore the schema. An answer that ended by itself is checked when it is
whole, and fails if it does not follow the schema. A schema that cannot be checked is refused before
anything is generated. An answer that was cut is passed on as what it is.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING

from ruvd.core.errors import FieldViolation, InvalidRequest, SchemaViolated
from ruvd.core.model import FinishReason
from ruvd.core.options import ResponseFormat
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText
from ruvd.core.ports.engine_wrapper import EngineWrapper

if TYPE_CHECKING:
    from ruvd.engines.validated.schema import AnswerSchema

_FIELD = "options.response_format.json_schema"
_ANY_OBJECT = '{"type": "object"}'


class ValidatedEngine(EngineWrapper):
    """Passes every call on to `engine`, and checks the answers to a `response_format`."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`. An answer without a response format costs nothing more."""
        wanted = request.options.response_format
        if wanted is None:
            return self._engine.generate(request)
        return self._generate_checked(request, wanted)

    async def _generate_checked(
        self, request: EngineRequest, wanted: ResponseFormat
    ) -> AsyncGenerator[EngineChunk, None]:
        """Raises InvalidRequest for the schema, and SchemaViolated for the answer."""
        schema = await asyncio.to_thread(_compiled, wanted)
        texts: list[str] = []
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, EngineText):
                    texts.append(chunk.text)
                elif isinstance(chunk, EngineDone) and chunk.finish_reason is FinishReason.STOP:
                    await _check(schema, "".join(texts))
                yield chunk


async def _check(schema: "AnswerSchema", answer: str) -> None:
    if problem := await asyncio.to_thread(schema.problem_of, answer):
        raise SchemaViolated(f"the engine's answer {problem}")


@lru_cache(maxsize=32)
def _compiled(wanted: ResponseFormat) -> "AnswerSchema":
    """Returns the schema. Blocks. Raises InvalidRequest."""
    # The libraries take a fifth of a second to load, and most daemons never need them.
    from ruvd.engines.validated.schema import AnswerSchema, SchemaRefused  # noqa: PLC0415

    try:
        return AnswerSchema(_ANY_OBJECT if wanted.json_object else wanted.json_schema)
    except SchemaRefused as refusal:
        raise InvalidRequest([FieldViolation(_FIELD, str(refusal))]) from None
