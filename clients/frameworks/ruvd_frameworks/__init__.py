"""Adapters that give agent frameworks ruvd's sessions: one module for each framework.

`langchain`      `ChatRuvd`, a chat model, and `RuvdChatMessageHistory` (LangChain and LangGraph)
`llamaindex`     `RuvdLLM`
`openai_agents`  `RuvdSession` of the OpenAI Agents SDK
`pydantic_ai`    `RuvdModel`

Each module needs its framework, which the extra of the same name installs.
"""

from ruvd_frameworks.history import HistoryMismatch

__all__ = ["HistoryMismatch"]
