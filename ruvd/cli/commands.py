"""The commands, each imported when it is called: what one needs, the others need not wait for."""

from __future__ import annotations

from importlib.metadata import version

import cyclopts

_BATCH_HELP = """Answer a file in OpenAI's batch format into another.

A line of FILE (- is stdin) is, with any options of /v1/chat/completions in its body:

{"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages":
[{"role": "user", "content": "Hello"}], "max_tokens": 20}}

Outcomes come in no order, in OpenAI's batch output format. After an interruption the same command
goes on: what has a line in OUT is done. A line that failed keeps it; --retry-failed drops it first
and runs the item again. The same custom_id with the same body within the daemon's
completion_retention gets the answer that it got.

Exit code 0 if all succeeded, 1 if some failed, 2 for wrong usage or files, 130 interrupted."""

app = cyclopts.App(
    name="ruvd",
    help="Owns the conversation between a service and its LLM engine.",
    version=lambda: version("ruvd"),
    suppress_keyboard_interrupt=False,
)
sessions = cyclopts.App(name="sessions", help="List, show, end, export and import sessions.")

app.command("ruvd.cli.serve:serve", name="serve", help="Run the daemon.")
app.command("ruvd.cli.serve:config", name="config", help="Show the settings in force.")
app.command("ruvd.cli.chat:chat", name="chat", help="Talk to the daemon's engine in a session.")
app.command("ruvd.cli.health:health", name="health", help="Exit 0 if the daemon is serving.")
app.command(
    "ruvd.cli.drain:drain", name="drain", help="Turn readiness off, so that no more calls come."
)
app.command("ruvd.cli.demo:demo", name="demo", help="Measure what a session saves, here and now.")
app.command("ruvd.cli.models:models", name="models", help="List the models that the engine offers.")
app.command("ruvd.cli.batch:batch", name="batch", help=_BATCH_HELP)
app.command("ruvd.cli.metrics:metrics", name="metrics", help="Show what the daemon measured.")
app.command("ruvd.cli.backup:backup", name="backup", help="Copy the sessions' store to a file.")
sessions.command("ruvd.cli.sessions:list_sessions", name="list", help="List the sessions.")
sessions.command("ruvd.cli.sessions:show", name="show", help="Show one session with its messages.")
sessions.command("ruvd.cli.sessions:end", name="end", help="Delete a session with its messages.")
sessions.command(
    "ruvd.cli.transfer:export_sessions",
    name="export",
    help="Write sessions as JSON lines, in OpenAI's message format.",
)
sessions.command(
    "ruvd.cli.transfer:import_sessions",
    name="import",
    help="Make sessions of JSON lines in OpenAI's message format.",
)
app.command(sessions)
