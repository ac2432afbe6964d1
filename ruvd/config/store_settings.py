"""The settings of a store in PostgreSQL."""

from functools import partial

from pydantic_settings import BaseSettings

from ruvd.config.fields import OptionalPath, setting

_postgres = partial(setting, "Store postgresql")


class StoreSettings(BaseSettings):
    """The part of `Settings` for a store in PostgreSQL."""

    store_password_file: OptionalPath = _postgres(
        None,
        "File with the password for PostgreSQL, read at each new connection. Unset: libpq's own "
        "ways, such as PGPASSWORD, PGPASSFILE and client certificates.",
    )
    store_connections: int = _postgres(
        8, "Most connections of this daemon to PostgreSQL.", ge=2, le=1000
    )
    store_timeout_seconds: float = _postgres(
        10.0, "Seconds for an operation, including the wait for a connection.", gt=0, le=600
    )
    store_lease_seconds: float = _postgres(
        10.0,
        "Seconds after which other daemons take the sessions of one that is gone or cut off.",
        ge=1,
        le=600,
    )
    store_prepares: bool = _postgres(
        default=True,
        description="Use prepared statements. Turn it off behind a PgBouncer before 1.21.",
    )
