"""A gRPC sidecar that owns the conversation between a service and its LLM engine."""

import os

# gRPC's fork handlers run whenever the engine's child is started, and in that child they shut
# down sockets that are still the parent's: callers saw "Socket closed" whenever an engine came
# up. Nothing of ours goes on after a fork without exec. Read when gRPC is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
