"""Encryption of stored state: the operator's keys, data keys under them, and sealed files."""
