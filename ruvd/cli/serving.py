"""Runs the daemon with loaded settings, and turns its failures into exit codes."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruvd.config.settings import Settings

USAGE = 2
_CANNOT_LISTEN = 3
_STORE_LOCKED = 4


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collects no garbage while the block imports modules, which make none.

    The interpreter would look through all that is imported, dozens of times: 50 of 440 ms of CPU
    time from the start to the sockets (2 cores, 2026-11-30).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def serve(settings: "Settings", load_settings: "Callable[[], Settings]") -> int:
    """Runs the daemon; returns its exit code. `load_settings` reads the settings again."""
    # Imported only now, so that invalid settings are reported at once.
    with collector_paused():
        from ruvd.core.ports.store import StoreLocked, StoreSealed
        from ruvd.rpc.watched_files import FilesInvalid
        from ruvd.server import logs, runtime_tuning
        from ruvd.server.daemon import Daemon
        from ruvd.server.unix_socket import AddressUnavailable

        logs.configure(settings.log_level, settings.log_format)
        runtime_tuning.tune_allocator()
        runtime_tuning.tune_interpreter()

    async def run() -> int:
        return await Daemon(settings, load_settings).run()

    try:
        with runtime_tuning.event_loop_runner() as runner:
            return runner.run(run())
    except (FilesInvalid, StoreSealed) as error:
        return fail(str(error), USAGE)
    except AddressUnavailable as error:
        return fail(str(error), _CANNOT_LISTEN)
    except StoreLocked as error:
        return fail(str(error), _STORE_LOCKED)


def fail(message: str, code: int) -> int:
    """Prints why the daemon cannot run, and returns the exit code."""
    from rich.console import Console

    Console(stderr=True).print(f"ruvd: {message}", style="red", markup=False, highlight=False)
    return code
