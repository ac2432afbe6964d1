"""A client of the chat completions protocol of OpenAI's API."""
