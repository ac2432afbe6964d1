"""Compares options of the embedded engine that the daemon fixes: speculation and others.

All variants run at the same time, each as a child process with the daemon's parameters except one,
and answer the same prompts in turn at temperature 0, `--parallel` answers at a time:

fixed         the parameters of the daemon: no flash attention, threads that soon sleep at a barrier
spinning      threads that spin at a barrier as long as OpenMP does by default
flash         flash attention
ngram_...     llama.cpp's n-gram speculation: it drafts what followed the last words before, and
              evaluates the draft at once

`copy` asks for a text to be repeated word by word, the best case of speculation, `free` for a new
one. Both prompts have the same text before that, so the one of `free` is mostly cached. The figures
are tokens per second of the answer, milliseconds for the prompt, and the tokens that were drafted
and accepted. `same` says whether the answer is that of
`fixed`: a token that is evaluated together with others may differ from the same one evaluated
alone at a near-tie.

Run it with `.venv/bin/python -m bench.engine_options`; it takes two to three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import uvloop

from bench import llama_variant, runner
from bench.machine import describe
from bench.multi_turn_servers import Shape, direct
from bench.report import spread
from bench.runner import log_progress

_CONTEXT_TOKENS = 2048
_VARIANTS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "spinning": {"spin": "300000"},
    "flash": {"flash": True},
    **{name: {"speculation": name} for name in ("ngram_simple", "ngram_map_k", "ngram_mod")},
}
_SENTENCES = (
    "The brig Fortuna came in from Lisbon with salt and oranges, and lay at the east mole.",
    "Two trawlers were mended on the slip, and the smith was paid eleven crowns for it.",
    "The ferry ran late since fog lay on the sound, and the bell was rung until noon.",
    "A barge of timber broke loose in the night, and was found on the sand at low tide.",
    "The harbour master counted nine sails on the horizon, and wrote them into his ledger.",
    "A cook from the Astrid sold three barrels of herring, and bought a goat and some onions.",
    "The pilot's boat was painted green, and the children were told not to touch it.",
)
_TASKS = {
    "copy": "Repeat the text word by word, and nothing else.",
    "free": "Write a new story about a lighthouse keeper.",
}


def _prompt(task: str, number: int, index: int) -> str:
    # Each round has a new beginning, so that nothing of the prompt is cached.
    text = " ".join((f"Ledger {number}.{index}.", *_SENTENCES[index % 3 :]))
    return f"<|im_start|>user\n{text}\n\n{_TASKS[task]}<|im_end|>\n<|im_start|>assistant\n"


async def _answers(
    client: httpx.AsyncClient, prompts: Sequence[str], tokens: int
) -> dict[str, Any]:
    """Asks for all answers at once. Returns their texts and figures."""

    async def ask(slot: int, prompt: str) -> dict[str, Any]:
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "id_slot": slot}
        reply = await client.post("/completion", json=body)
        reply.raise_for_status()
        found: dict[str, Any] = reply.json()
        return found

    found = await asyncio.gather(*(ask(slot, prompt) for slot, prompt in enumerate(prompts)))
    timings = [each["timings"] for each in found]
    generated = sum(each["predicted_n"] for each in timings)
    seconds = max(each["predicted_ms"] for each in timings) / 1000
    return {
        "texts": [each["content"] for each in found],
        "tokens_per_second": generated / seconds,
        "prompt_ms": max(each["prompt_ms"] for each in timings),
        "drafted": sum(each.get("draft_n", 0) for each in timings),
        "accepted": sum(each.get("draft_n_accepted", 0) for each in timings),
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds and returns the figures of each variant and task."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    shape = Shape(context_tokens=_CONTEXT_TOKENS, answer_tokens=256, slots=options.parallel)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-options-")))
        clients = {}
        for name, variant in _VARIANTS.items():
            log_progress(f"starting {name}")
            os.environ[llama_variant.VARIABLE] = json.dumps(variant)
            os.environ["GOMP_SPINCOUNT"] = variant.get("spin", "1000")
            served = direct(folder / name, shape, module="bench.llama_variant")
            clients[name] = await stack.enter_async_context(served)
        for number in range(options.rounds):
            log_progress(f"round {number + 1} of {options.rounds}")
            for task in _TASKS:
                prompts = [_prompt(task, number, index) for index in range(options.parallel)]
                order = list(clients) if number % 2 == 0 else list(clients)[::-1]
                for name in order:
                    found = await _answers(clients[name], prompts, options.tokens)
                    rows.setdefault((name, task), []).append(found)
    return {
        **runner.origin("engine_options"),
        "variants": {
            f"{name}, {task}": _figures(found, rows["fixed", task])
            for (name, task), found in rows.items()
        },
    }


def _figures(rows: list[dict[str, Any]], fixed: list[dict[str, Any]]) -> dict[str, Any]:
    speeds = [row["tokens_per_second"] for row in rows]
    base = [row["tokens_per_second"] for row in fixed]
    texts = [text for row in rows for text in row["texts"]]
    expected = [text for row in fixed for text in row["texts"]]
    return {
        "tokens_per_second": statistics.median(speeds),
        "of_fixed": spread([own / other for own, other in zip(speeds, base, strict=True)]),
        "prompt_ms": statistics.median(row["prompt_ms"] for row in rows),
        "drafted": sum(row["drafted"] for row in rows),
        "accepted": sum(row["accepted"] for row in rows),
        "same": sum(own == other for own, other in zip(texts, expected, strict=True)),
        "answers": len(texts),
    }


def show(figures: dict[str, Any]) -> None:
    """Prints the figures as Markdown."""
    print("| variant, task | tokens/s | of fixed | prompt | drafted, accepted | same answers |")
    print("|---|---|---|---|---|---|")
    for name, row in sorted(figures["variants"].items(), key=lambda each: each[0].split(", ")[1]):
        ratio = row["of_fixed"]
        drafts = f"{row['drafted']}, {row['accepted']}" if row["drafted"] else ""
        print(
            f"| {name} | {row['tokens_per_second']:.1f}"
            f" | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            f" | {row['prompt_ms']:.0f} ms | {drafts} | {row['same']} of {row['answers']} |"
        )


def main() -> int:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=1, help="answers at a time, and slots")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer, at most")
    options = parser.parse_args()
    figures = runner.run("engine_options", run(options), runner=uvloop.run)
    print(describe())
    show(figures)
    runner.write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
