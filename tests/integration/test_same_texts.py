"""Thirty real conversations by the engine `openai` have the texts that a direct client gets.

Both speak to one real llama-server, one after the other, with temperature 0. The direct client
resends the whole history, which is what a window without a bound is; so both prompts are the
same to the byte, and the server's cache, which never changes a greedy text within one
configuration, may help either. One at a time, because what is evaluated together may round
differently. The numbers are small, because the machine of a test is: thirty
conversations of two turns, twelve tokens an answer, are sixty answers, twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llama_http import API_KEY, MODEL, LlamaHttp, llama_server
from running import StartDaemon
from wire import contents, say

from ruvd.v1 import session_service_pb2 as pb

SHARED = Path(__file__).parents[3] / "shared" / "data" / "conversations.jsonl"
OWN = [
    ["What is the capital of France?", "And of Italy?"],
    ["I have three apples, and I eat one.", "How many are left?"],
    ["Name a colour.", "Mix it with another one."],
    ["My dog is called Rex, and he likes the park.", "What is my dog called?"],
    ["Wer hat das Telefon erfunden?", "Und wann?"],
]
COUNT, TURNS, TOKENS = 30, 2, 12
MAX_TURN_CHARACTERS = 140
SLOTS = 2
SYSTEM = "You answer in one short sentence."


def conversations() -> list[list[str]]:
    """Real ones where the machine has them, the shorter ones; else our own, in variations."""
    if not SHARED.exists():
        return [
            [f"({index}) {text}" for text in OWN[index % len(OWN)][:TURNS]]
            for index in range(COUNT)
        ]
    real = [json.loads(line)["turns"][:TURNS] for line in SHARED.read_text().splitlines()]
    short = [turns for turns in real if max(map(len, turns)) <= MAX_TURN_CHARACTERS]
    return short[:COUNT]


async def directly(server: LlamaHttp, turns: list[str]) -> list[str]:
    """The answers that a client gets that keeps the history itself."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": TOKENS}
        response = await server.http.post("/chat/completions", json={**body, "seed": 1})
        answers.append(response.json()["choices"][0]["message"]["content"])
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


async def by_ruvd(stub: Any, session_id: str, turns: list[str]) -> list[str]:
    options = pb.CompletionOptions(temperature=0, max_tokens=TOKENS, seed=1)
    answers = []
    for index, turn in enumerate(turns):
        system = {"system_prompt": SYSTEM} if index == 0 else {}
        finished = await say(stub, turn, session_id, options=options, **system)
        assert finished.usage.HasField("cached_tokens")
        answers.append(finished.message.content)
    stored = await contents(stub, session_id)
    assert stored == [text for pair in zip(turns, answers, strict=True) for text in pair]
    return answers


@pytest.mark.timeout(600)  # 120 answers of a real model
async def test_thirty_conversations_have_the_texts_of_a_direct_client(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    talks = conversations()
    assert len(talks) == COUNT
    (tmp_path / "key").write_text(API_KEY)
    async with llama_server(context_tokens=1024, slots=SLOTS, threads=1) as server:
        direct = [await directly(server, turns) for turns in talks]
        flags = (
            "--engine", "openai", "--base-url", server.url, "--model", MODEL,
            "--api-key-file", str(tmp_path / "key"), "--affinity", "llama-server",
            "--max-exchanges", "0",
        )  # fmt: skip
        async with daemon(*flags) as running, running.stub() as stub:
            ours = [await by_ruvd(stub, f"s{number}", turns) for number, turns in enumerate(talks)]
    assert ours == direct
    assert sum(len(text) > 0 for texts in ours for text in texts) > COUNT
