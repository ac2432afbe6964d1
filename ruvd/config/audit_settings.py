"""The settings of the audit log."""

from functools import partial

from pydantic_settings import BaseSettings

from ruvd.config.fields import OptionalPath, setting

_audit = partial(setting, "Audit log")


class AuditSettings(BaseSettings):
    """The part of `Settings` for the audit log."""

    audit_log: str = _audit(
        "",
        "Where a record of every call goes, without content: stdout, otlp (OpenTelemetry logs, by "
        "the OTEL_* variables), or the path of a file. Unset: nowhere.",
    )
    audit_key_file: OptionalPath = _audit(
        None,
        "File with a secret of at least 16 bytes. Without it nobody can make records that `ruvd "
        "audit verify` accepts. Unset: plain hashes.",
    )
    audit_file_bytes: int = _audit(
        64 << 20,
        "Size at which the audit file is renamed to FILE.1 and a new one begins. 0: never, so that "
        "another program may do it.",
        ge=0,
    )
    audit_files: int = _audit(
        10, "Audit files kept, with the current one; older ones are deleted.", ge=2
    )
