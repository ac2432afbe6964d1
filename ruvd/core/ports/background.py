"""The contract for tasks that run in the background, beside the calls of clients."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

Run: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
StartTask: TypeAlias = Callable[[str, Run], asyncio.Task[None]]
"""Starts a task with a name. The task is supervised: `Run` is called again after an error. Whoever
starts it may cancel it."""


def start_unsupervised(name: str, run: Run) -> asyncio.Task[None]:
    """Starts a task that ends with its first error: a StartTask for use outside a daemon."""
    return asyncio.create_task(run(), name=name)
