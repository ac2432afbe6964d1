"""`/v1/batches`: the requests of a file, run by the core's batches, with files as the outcome.

Batches and their files are in memory. A batch runs on when the call that made it has ended, and
ends with the daemon.
"""

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ruvd.core import ids
from ruvd.core.completions.batch import BatchOutcome
from ruvd.core.errors import RuvdError
from ruvd.core.ports.background import StartTask
from ruvd.http.openai.batch_lines import ENDPOINT, LinesInvalid, read_lines, write_outcome
from ruvd.http.openai.calls import Call
from ruvd.http.openai.errors import respond_to
from ruvd.http.openai.fields import Fields
from ruvd.http.openai.files import KEPT_SECONDS, FileStore
from ruvd.http.openai.lists import page
from ruvd.http.openai.parts import Parts
from ruvd.http.openai.response_requests import read_bounded_metadata
from ruvd.http.refusals import Refused
from ruvd.rpc import auditing
from ruvd.rpc.identity import caller

_log = logging.getLogger("ruvd.http")
_MAX_BATCHES = 200
_MAX_RUNNING = 16
_TENANTS_SHARE = 2  # a tenant may have half of the batches
_MAX_OUTPUT_BYTES = 8 << 20
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_ENDS = ("completed", "failed", "cancelled")


@dataclass(eq=False, slots=True)
class Batch:
    """A batch of a tenant."""

    tenant: str
    input_file_id: str
    metadata: dict[str, str]
    id: str = field(default_factory=lambda: f"batch_{ids.unguessable()}")
    status: str = "validating"
    created_at: int = field(default_factory=lambda: int(time.time()))
    times: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    task: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.status in _ENDS

    def enter(self, status: str) -> None:
        """Changes the status."""
        self.status = status
        self.times[status] = int(time.time())

    def written(self) -> dict[str, Any]:
        """Returns the batch as OpenAI's API writes it."""
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.created_at + KEPT_SECONDS,
            "request_counts": counts,
            "metadata": self.metadata,
            **{f"{name}_at": self.times.get(name) for name in _TIMES},
        }


@dataclass(frozen=True, slots=True)
class _BatchItems:
    """The items of a batch for the audit log, which then records each of them by itself."""

    items: range


class FileBatches:
    """The operations of batches."""

    def __init__(self, parts: Parts, files: FileStore, start_task: StartTask) -> None:
        self._parts = parts
        self._files = files
        self._start_task = start_task
        self._batches: dict[str, Batch] = {}

    async def create(self, call: Call) -> None:
        """Begins a batch."""
        fields, body = Fields(), call.body
        file_id = fields.text(body.pop("input_file_id", None), "input_file_id")
        endpoint = body.pop("endpoint", None)
        if endpoint != ENDPOINT:
            fields.refuse("endpoint", f"must be {ENDPOINT}")
        fields.choice(body.pop("completion_window", None), "completion_window", ("24h",))
        metadata = read_bounded_metadata(fields, body.pop("metadata", None))
        fields.refuse_rest(body, "")
        fields.raise_if_wrong()
        content = self._files.get(caller.tenant(), file_id, "input_file_id").content
        batch = Batch(caller.tenant(), file_id, metadata)
        self._parts.completions.quotas.check_batch_call(batch.tenant)
        self._make_room(batch.tenant)
        self._batches[batch.id] = batch
        auditing.note_request(_BatchItems(range(content.count(b"\n") + 1)))
        batch.task = self._start_task(f"batch {batch.id}", partial(self._run, batch, content))
        await call.respond(batch.written())

    async def list(self, call: Call) -> None:
        """Lists the batches, by default the latest first."""
        tenant = caller.tenant()
        found = [each for each in self._batches.values() if each.tenant == tenant][::-1]
        await call.respond(page(call, found, 100, "batch_not_found"))

    async def retrieve(self, call: Call) -> None:
        """Returns a batch."""
        await call.respond(self._find(call).written())

    async def cancel(self, call: Call) -> None:
        """Cancels a batch; the outcomes that it has stay."""
        batch = self._find(call)
        if not batch.has_ended and batch.task:
            batch.enter("cancelling")
            batch.task.cancel()
        await call.respond(batch.written())

    def _find(self, call: Call) -> Batch:
        batch = self._batches.get(call.path["batch_id"])
        if batch is None or batch.tenant != caller.tenant():
            raise Refused(404, "batch_not_found", "there is no such batch", "batch_id")
        return batch

    def _make_room(self, tenant: str) -> None:
        """Forgets old batches that have ended. Raises Refused if too many run."""
        running = [each for each in self._batches.values() if not each.has_ended]
        own = [each for each in running if each.tenant == tenant]
        if len(running) >= _MAX_RUNNING or len(own) >= _MAX_RUNNING // _TENANTS_SHARE:
            text = "too many batches run; wait for one to end"
            raise Refused(429, "batches_limit", text, "input_file_id")
        horizon = time.time() - KEPT_SECONDS
        surplus = len(self._batches) - _MAX_BATCHES + 1
        for each in [each for each in self._batches.values() if each.has_ended]:
            if surplus > 0 or each.created_at < horizon:
                del self._batches[each.id]
                surplus -= 1

    async def _run(self, batch: Batch, content: bytes) -> None:
        """Runs a batch to its end, whatever that is."""
        output = bytearray(), bytearray()
        try:
            await self._complete(batch, content, output)
            batch.enter("finalizing")
            self._keep(batch, output)
            batch.enter("completed")
        except LinesInvalid as error:
            batch.errors = [*error.errors]
            batch.enter("failed")
        except asyncio.CancelledError:
            self._end_early(batch, output, "cancelled")
            raise
        except Exception as error:  # noqa: BLE001  # the batch must have an end
            if not isinstance(error, RuvdError):
                _log.exception("a batch failed", extra={"batch_id": batch.id})
            told = respond_to(error).error
            batch.errors = [{"code": told["code"], "line": None, "message": told["message"],
                             "param": told["param"]}]  # fmt: skip
            self._end_early(batch, output, "failed")

    async def _complete(
        self, batch: Batch, content: bytes, output: tuple[bytearray, bytearray]
    ) -> None:
        lines = await read_lines(content, self._parts.limits)
        batch.total = len(lines)
        with self._parts.completions.quotas.batch_call(batch.tenant):
            batch.enter("in_progress")
            outcomes = self._parts.batches.run([line.item for line in lines])
            async with aclosing(outcomes) as events:
                async for event in events:
                    if isinstance(event, BatchOutcome):
                        line = lines[event.index]
                        written = write_outcome(line, event, self._parts.engine.model)
                        has_failed = event.finished is None
                        output[has_failed].extend(written)
                        batch.failed += has_failed
                        batch.completed += not has_failed
                        if len(output[0]) + len(output[1]) > _MAX_OUTPUT_BYTES:
                            text = f"the outcomes have more than {_MAX_OUTPUT_BYTES} bytes"
                            raise Refused(400, "output_too_large", text, "input_file_id")

    def _keep(self, batch: Batch, output: tuple[bytearray, bytearray]) -> None:
        """Makes files of the outcomes. Raises Refused if there is no room for them."""
        answers, errors = output
        if answers:
            name = f"{batch.id}_output.jsonl"
            stored = self._files.add(batch.tenant, name, "batch_output", bytes(answers))
            batch.output_file_id = stored.id
        if errors:
            name = f"{batch.id}_error.jsonl"
            stored = self._files.add(batch.tenant, name, "batch_output", bytes(errors))
            batch.error_file_id = stored.id

    def _end_early(self, batch: Batch, output: tuple[bytearray, bytearray], status: str) -> None:
        try:
            if not batch.output_file_id and not batch.error_file_id:
                self._keep(batch, output)
        except Refused as error:
            batch.errors.append({"code": error.code, "line": None, "message": str(error),
                                 "param": None})  # fmt: skip
        batch.enter(status)
