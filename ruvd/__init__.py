"""A gRPC sidecar that owns the conversation between a service and its LLM engine."""
