"""The engine that uses any servers with OpenAI's chat completions API."""
