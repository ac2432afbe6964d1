"""OpenAI's API over HTTP: the same sessions and completions as over gRPC."""
