"""The process: its parts, its life, its logs and its sockets."""
