"""The daemon's process: composition, lifecycle, tuning, logs and sockets."""

from ruvd.server import runtime_tuning as runtime_tuning  # before anything imports grpc
