"""OpenAI's own client against the daemon, unchanged: files and batches."""

from __future__ import annotations

import asyncio
import json

import pytest
from http_door import HTTP, base_url
from openai_package import client, openai
from running import StartDaemon

URL = "/v1/chat/completions"


def line(custom_id: str, text: str) -> bytes:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    request = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}
    return json.dumps(request).encode() + b"\n"


async def test_a_batch_of_a_file(daemon: StartDaemon) -> None:
    async with (
        daemon("--engine", "echo", "--echo-faults", *HTTP) as running,
        client(await base_url(running)) as api,
    ):
        content = line("one", "hello you") + line("two", "!fault CONTEXT_TOO_LONG")
        uploaded = await api.files.create(file=("in.jsonl", content), purpose="batch")
        assert uploaded.bytes == len(content)
        batch = await api.batches.create(
            input_file_id=uploaded.id, endpoint=URL, completion_window="24h"
        )
        async with asyncio.timeout(60):
            while batch.status != "completed":
                batch = await api.batches.retrieve(batch.id)
                assert batch.status not in ("failed", "cancelled")
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        output = json.loads((await api.files.content(batch.output_file_id)).text)
        answer = output["response"]["body"]["choices"][0]["message"]["content"]
        assert (output["custom_id"], answer) == ("one", "hello you")
        errors = json.loads((await api.files.content(batch.error_file_id)).text)
        assert errors["response"]["body"]["error"]["code"] == "context_length_exceeded"
        assert [each.id async for each in api.batches.list()] == [batch.id]
        assert len([each async for each in api.files.list()]) == 3
        assert (await api.files.delete(uploaded.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await api.files.retrieve(uploaded.id)
