"""The daemon's process: composition, lifecycle, tuning, logs and sockets."""
