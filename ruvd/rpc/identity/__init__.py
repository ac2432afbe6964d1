"""Callers and their permissions: certificates, tokens, JWTs, sockets, roles."""
