"""The chat completions protocol of OpenAI's API, as a client."""
