"""The audit log of the daemon, built as the settings ask for it, and told of its events."""

import errno
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ruvd.config.loader import Settings
from ruvd.core.ports.events import AuditRecordLost
from ruvd.rpc import auditing
from ruvd.rpc.watched_files import FilesInvalid, Reload
from ruvd.server.background import BackgroundTasks
from ruvd.server.observers import Observers
from ruvd.telemetry import environment
from ruvd.telemetry.audit.chain import Hasher, read_key
from ruvd.telemetry.audit.chain_writer import ChainWriter
from ruvd.telemetry.audit.file_output import FileOutput
from ruvd.telemetry.audit.log import AuditLog
from ruvd.telemetry.audit.outputs import Output, StandardOutput

_VERSION = version("ruvd")  # read from files, so not on the event loop


class Audit:
    """The audit log, or None if it is off. `calls` records the calls of a server."""

    def __init__(self, log: AuditLog | None) -> None:
        self._log = log
        self.calls = auditing.CallAudit(log) if log else None

    def start(self, background: BackgroundTasks, observers: Observers) -> None:
        """Records the start of the daemon, and writes records in the background."""
        if self._log is None:
            return
        self._log.add({"event": "daemon_started", "version": _VERSION, "pid": os.getpid()})
        observers.add(auditing.observe)
        background.start("audit log", self._log.run)

    def record_reload(self, reload: Reload) -> None:
        """Records that changed certificates, tokens or keys are in use, or cannot be used."""
        if self._log is None:
            return
        event = {"event": "files_rejected" if reload.error else "files_reloaded"}
        if reload.error:
            event["detail"] = reload.error
        self._log.add({**event, "settings": reload.settings})

    async def close(self) -> None:
        """Records the end of the daemon, and writes what is left."""
        if self._log is None:
            return
        self._log.add({"event": "daemon_stopped"})
        await self._log.close()


def build_audit(settings: Settings, observers: Observers) -> Audit:
    """Opens the audit log if it is on. Blocks. Raises FilesInvalid if it cannot be opened.

    A full disk is no reason not to start: the log is opened as soon as there is room.
    """
    if not settings.audit_log:
        return Audit(None)
    try:
        hasher = Hasher(read_key(settings.audit_key_file))
    except (OSError, ValueError) as error:
        raise FilesInvalid(f"audit_key_file: {error}") from None
    writer = ChainWriter(_build_output(settings, hasher), hasher)
    log = AuditLog(writer, partial(_tell_of_loss, observers))
    try:
        log.open()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise FilesInvalid(f"audit_log: {error}") from None
    return Audit(log)


def _tell_of_loss(observers: Observers) -> None:
    observers(AuditRecordLost())


def _build_output(settings: Settings, hasher: Hasher) -> Output:
    if settings.audit_log == "stdout":
        return StandardOutput()
    if settings.audit_log == "otlp":
        return _build_otlp_output()
    return FileOutput(
        Path(settings.audit_log).absolute(),
        hasher,
        max_bytes=settings.audit_file_bytes,
        max_files=settings.audit_files,
    )


def _build_otlp_output() -> Output:
    from ruvd.telemetry.audit.otlp_output import OtlpOutput

    environment.unset_empty(os.environ)
    protocol = environment.logs_protocol(os.environ)
    if not protocol:
        raise FilesInvalid(
            "audit_log: otlp needs OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"
        )
    return OtlpOutput(protocol, _VERSION)
