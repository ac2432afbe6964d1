"""Presets for what of an answer with tool calls a server is sent back."""

from typing import Literal, TypeAlias

import httpx

from ruvd.engines.chat.messages import SendBack

SendBackPreset: TypeAlias = Literal["auto", "none", "signatures", "reasoning_content", "reasoning"]

# Servers that refuse a tool's result without the reasoning that led to the call.
_NEED_REASONING = ("deepseek.com", "moonshot.cn", "moonshot.ai")


def send_back(preset: SendBackPreset, base_url: str) -> SendBack:
    """Returns what the server at `base_url` is sent back."""
    if preset == "none":
        return SendBack(fields=False)
    if preset in ("reasoning_content", "reasoning"):
        return SendBack(reasoning=preset)
    host = httpx.URL(base_url).host
    if preset == "auto" and any(f".{host}".endswith(f".{name}") for name in _NEED_REASONING):
        return SendBack(reasoning="reasoning_content")
    return SendBack()
