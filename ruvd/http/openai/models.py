"""`/v1/models`: the models that the caller may ask for."""

import time
from collections.abc import Sequence
from typing import Any

from ruvd.core.completions.allowances import is_allowed
from ruvd.http.openai.calls import Call
from ruvd.http.openai.parts import Parts
from ruvd.http.refusals import Refused
from ruvd.rpc.identity import caller


class Models:
    """The operations of models."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._created = int(time.time())  # engines do not say when a model was made

    async def list(self, call: Call) -> None:
        """Lists the models."""
        await call.respond(
            {"object": "list", "data": [self._model(n) for n in await self._names()]}
        )

    async def retrieve(self, call: Call) -> None:
        """Returns one model."""
        name = call.path["model"]
        if name not in await self._names():
            raise Refused(404, "model_not_found", "there is no such model", "model")
        await call.respond(self._model(name))

    async def _names(self) -> Sequence[str]:
        allowed = self._parts.limits.limits_of(caller.tenant()).models
        return [each for each in await self._parts.engine.models() if is_allowed(each, allowed)]

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "ruvd"}
