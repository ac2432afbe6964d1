"""The engine for any server with OpenAI's chat completions API."""
