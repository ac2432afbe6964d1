"""The store in PostgreSQL, which several daemons may share."""
