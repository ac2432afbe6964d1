"""The commands and their help. A command's module is imported when the command is called."""

from importlib.metadata import version

import cyclopts

_HELP = """Keeps the conversations between your service and its LLM engine.

`ruvd serve` runs beside the service, which then sends only each new message. `ruvd chat` talks to
such a daemon, and `ruvd demo` measures what a session saves on this machine."""

_SERVE = """Run the daemon.

Each setting is a flag, a RUVD_* variable and a key of ruvd.toml; the first of them that is given
counts. `ruvd config` shows the result. OTEL_* variables say where traces and metrics go.

SIGTERM and SIGINT let running turns end within drain_seconds; a second one stops at once. SIGUSR1
turns readiness off. SIGUSR2 switches between debug and the configured log level. SIGHUP lets it
read ruvd.toml again and take its named engines. `ruvd admin` and `ruvd drain` reach a running
daemon through admin_listen.

Exit codes: 0 stopped, 2 invalid settings or a missing key of the store, 3 cannot listen, 4 the
store is in use or was written by a newer ruvd, 130 or 143 stopped at once by a second signal."""

_RUN = """Run a command beside a daemon of its own.

    ruvd run -- python app.py

    ruvd run --engine openai --base-url http://127.0.0.1:8000/v1 -- npm test

The daemon listens on a Unix socket in a private directory. When it is ready, the command starts
with RUVD_ADDRESS set to it, which all clients read, and RUVD_ADMIN_ADDRESS for `ruvd admin`. When
the command has ended, running turns end within drain_seconds, the daemon stops, and the directory
is deleted. The sessions are kept in the setting store; try --store memory.

Settings come from flags before the two hyphens, RUVD_* variables and ruvd.toml, as for
`ruvd serve`. Only listen and admin_listen are not taken from there, so that the same file serves a
daemon beside it; --listen adds an address.

Signals are passed on to the command. The daemon does not get those of the terminal. If the daemon
ends before the command, the command gets SIGTERM.

Exit codes: the command's, or 128 and the number of the signal that ended it; 126 it cannot be
executed, 127 there is no such command, 1 the daemon ended or was not ready, and as for
`ruvd serve` if it cannot start: 2 invalid settings, 3 cannot listen, 4 the store is in use."""

_CONFIG = """Show the settings that `ruvd serve` would use, and the source of each.

It takes the same flags, variables and file, and starts nothing. Exit code 2 if they are invalid."""

_CHAT = """Talk to the daemon's engine in a session.

On a terminal, Ctrl-C cancels an answer, which leaves the session as it was, and Ctrl-D ends the
chat. From a pipe, each line is a message. The session is kept, unless it is new and empty."""

_HEALTH = """Check whether the daemon is serving: for probes.

Prints one line. Exit codes: 0 serving, 1 not serving or not reachable, 2 wrong usage."""

_DRAIN = """Turn the daemon's readiness off, so that it gets no new calls: for a preStop hook.

Nothing is refused and nothing is cancelled; SIGTERM comes later. It calls the daemon's admin socket
(the setting admin_listen), so it also works from another container that has the socket's file and
the same user. `--undo` takes it back.

Exit codes: 0 readiness is off and, with --wait, no completion runs; 1 otherwise, or there is no
daemon."""

_ADMIN = """Administer a running daemon, through its admin socket.

The socket is the setting admin_listen; only the user who runs the daemon, and root, can open it.
Without --admin-address the commands take it from the settings, so run them with the same variables
as the daemon. A credential with the role admin may call the addresses of the API instead:
`--admin-address HOST:PORT --token-file F`."""

_STATUS = """Show whether the daemon is ready, what runs, and the log level."""

_LOG_LEVEL = """Change the lowest level that the daemon logs, until it stops or for a while.

`ruvd admin log-level debug --for 600` returns to the setting log_level after ten minutes, and
`ruvd admin log-level setting` at once."""

_ADMIN_BACKUP = """Let the daemon copy its store to a new file in its backup_dir.

Use this where you can reach the daemon but not its files. `ruvd backup FILE` needs no daemon, only
its files: use that on its machine, also while the daemon is down, and for a path of your choice.
An existing file is never replaced. Exit codes: 0 copied and checked, 1 failed."""

_TENANTS = """List the tenants that have sessions or completions, with their counts."""

_RELOAD = """Let the daemon read its tokens, certificates, API key and keys of issuers again now.

It does so by itself within seconds. This command confirms it: run it after a token was revoked.
Exit codes: 0 the contents of all files are in use; 1 one was refused, and what it had stays."""

_RELOAD_SETTINGS = """Let the daemon read its settings file again and take its named engines.

These are the tables [engines.NAME]. SIGHUP does the same. Running completions go on with the engine
that they have. If anything is wrong, nothing is changed. Other changed settings need a restart, and
are named.

Exit codes: 0 the engines of the file are in use; 1 something is wrong, and nothing was changed."""

_INFO = """Show what the daemon is and what it can do.

Prints its version, its features, its engines with the models that you may name, and the limits of
your requests and sessions. It also answers while an engine is down."""

_TOP = """Show what the daemon does now, until Ctrl-C: a live table.

It shows the daemon's health and memory, the completions that run or wait, and the sessions that
were used last. Run it with the daemon's variables, or name its admin socket with --admin-address:
the completions, the store's health and the memory come from there.

For scripts, --once prints one reading and --json prints readings as JSON, one a line.

Exit codes: 0, or with --once 1 if there is no daemon."""

_DEMO = """Measure on this machine what a session saves.

Starts daemons of its own and holds one conversation three times: in a session, resent in full
without the engine's cache, and resent in full with it. Then it restarts the first daemon and goes
on with the session."""

_BATCH = """Answer a file in OpenAI's batch format into another.

A line of FILE (- is stdin) is, with any options of /v1/chat/completions in its body:

{"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages":
[{"role": "user", "content": "Hello"}], "max_tokens": 20}}

Outcomes are written in OpenAI's batch output format, in the order in which they finish. After an
interruption run the same command again: it skips items that have a line in OUT. An item that failed
keeps its line; --retry-failed removes it first and runs the item again. An item with the same
custom_id and body gets the same answer again within the daemon's completion_retention_seconds.

Exit codes: 0 all succeeded, 1 some failed, 2 wrong usage or files, 130 interrupted."""

_BACKUP = """Copy the sessions' store to FILE, as it is at one instant; the daemon may run.

It reads the store's file and calls no daemon. Where you can reach the daemon but not its files, use
`ruvd admin backup`.

To restore, stop the daemon and put the copy in the place of the store, or name it with --store.
Exit codes: 0 copied and checked, 1 failed, 2 invalid settings."""

_MIGRATE = """Copy all sessions of a SQLite store to PostgreSQL, and compare them.

    ruvd migrate --from sqlite:sessions.db --to postgresql://ruvd@db.example.org/ruvd

Stop the daemon first: turns that it stores afterwards would be missing in the target. While the
command runs no daemon can open the source. The source is read and not changed. Try --dry-run at any
time, also while the daemon runs. --while-serving copies from a running daemon's store, to rehearse,
or if no more turns are made. No daemon may have the target open.

Histories, request ids, completions and tombstones are copied. Repeated requests are answered by the
target, and not run again. It compares every session in the end. After an interruption run the same
command again: sessions that are there and equal are skipped. If one differs, it is named and
nothing is written.

It needs room for a temporary copy of the source, beside it or in --copy-dir.

Exit codes: 0 copied and equal, 1 failed or a session of the source is damaged, 2 wrong usage."""

_DOCTOR = """Say what the settings of the store do to the daemon's promises.

It takes the settings of `ruvd serve` and asks the store itself: for PostgreSQL how commits reach
the disk and the standbys, for SQLite the durability and the file system. Nothing is changed. The
daemon logs the risks as warnings when it starts.

Exit codes: 0 no risk, 1 a risk or no answer, 2 invalid settings."""

_END = """Delete sessions with their messages; their running turns fail.

Within 10 s after the command nothing of them is in the daemon's files, except what a fork shares.
The command does not wait for that.

Exit codes: 0 ended, 1 failed, 2 wrong usage."""

_COMPACT = """Summarise a session; its prompts have the summary in place of earlier exchanges.

The engine writes the summary. The history keeps all messages.
"""
_EXPORT = """Write sessions as JSON lines, in OpenAI's message format.

Without ids it writes all sessions, in the order of their creation. A line is
{"messages": [{"role", "content"}...], "metadata": {...}}, with the system prompt as the first
message."""

_IMPORT = """Create a session from each JSON line of FILE (- is stdin), in OpenAI's message format.

A line without a session_id in its metadata gets a new one. A line with content that a session
cannot hold, such as images, is refused and named. Exit code 1 if any line failed."""

_CREATE = """Make a bearer token for a daemon that has a tokens_file.

It is printed once; FILE gets only its hash. A running daemon takes a changed file within seconds.
To revoke a token, remove its line."""

_REKEY = """Encrypt the store with the first key of encryption_key_file, and wait for that.

It also encrypts a store that is not encrypted yet. While a daemon has the store open, the daemon
does the work and goes on serving; otherwise this command does it. It may be interrupted. Then it
says which keys are no longer needed. With --plain it takes the encryption away.

Exit codes: 0 done, 1 failed, 2 invalid settings or a missing key."""

_CREATE_KEY = """Make a key for a daemon that has an encryption_key_file.

The new key becomes the first one of FILE, which encrypts; the keys after it open what they have
encrypted before. A running daemon takes a changed file within seconds. `ruvd rekey` says when the
older keys are no longer needed. Keep a copy of FILE elsewhere: without it nothing can be read."""

_VERIFY = """Check that audit files are as the daemon wrote them.

Every record has the hash of the one before it, over rotated files and restarts. Records that were
changed, removed, inserted or moved are named with their file and line. Give all files:

    ruvd audit verify audit.log audit.log.*

A chain shows nothing of records that were cut off at its end. So the last hash is printed, and the
daemon logs it at its start and end: keep one outside the machine, and give it later as --anchor.
Whoever may write the files can compute plain hashes again; with audit_key_file that needs the key.

Exit codes: 0 intact, 1 altered, 2 wrong usage or files, 3 intact but for a last record that was not
written to its end, as after a crash."""

_COMPLETION = """Print what completes commands and flags in a shell.

    source <(ruvd completion bash)

With --install it is written to a folder of yours that the shell reads, and bash and zsh get a line
in ~/.bashrc or ~/.zshrc. Do it again after an upgrade.

Exit codes: 0 printed or written, 1 the file cannot be written, 2 wrong usage."""

app = cyclopts.App(
    name="ruvd",
    help=_HELP,
    version=lambda: version("ruvd"),
    suppress_keyboard_interrupt=False,
)
app.command("ruvd.cli.serve:serve", name="serve", help=_SERVE)
app.command(
    "ruvd.cli.run_command:run",
    name="run",
    help=_RUN,
    usage="Usage: ruvd run [SETTINGS] -- COMMAND [ARGUMENTS]",
)
app.command("ruvd.cli.serve:config", name="config", help=_CONFIG)
app.command("ruvd.cli.chat:chat", name="chat", help=_CHAT)
app.command("ruvd.cli.health:health", name="health", help=_HEALTH)
app.command("ruvd.cli.drain:drain", name="drain", help=_DRAIN)
app.command("ruvd.cli.demo:demo", name="demo", help=_DEMO)
app.command("ruvd.cli.info:info", name="info", help=_INFO)
app.command("ruvd.cli.models:models", name="models", help="List the models that the engines offer.")
app.command("ruvd.cli.batch:batch", name="batch", help=_BATCH)
app.command(
    "ruvd.cli.metrics:metrics",
    name="metrics",
    help="Show what the daemon measured since its start.",
)
app.command("ruvd.cli.top:top", name="top", help=_TOP)
app.command("ruvd.cli.backup:backup", name="backup", help=_BACKUP)
app.command("ruvd.cli.doctor:doctor", name="doctor", help=_DOCTOR)
app.command("ruvd.cli.migrate:migrate", name="migrate", help=_MIGRATE)
app.command("ruvd.cli.completion:completion", name="completion", help=_COMPLETION)

admin = cyclopts.App(name="admin", help=_ADMIN)
admin.command("ruvd.cli.admin:status", name="status", help=_STATUS)
admin.command("ruvd.cli.admin:log_level", name="log-level", help=_LOG_LEVEL)
admin.command("ruvd.cli.admin:backup", name="backup", help=_ADMIN_BACKUP)
admin.command("ruvd.cli.admin:tenants", name="tenants", help=_TENANTS)
admin.command("ruvd.cli.admin:reload_settings", name="reload", help=_RELOAD_SETTINGS)
admin.command("ruvd.cli.admin:reload_secrets", name="reload-secrets", help=_RELOAD)
app.command(admin)

sessions = cyclopts.App(
    name="sessions", help="List, show, compact, end, export and import sessions."
)
sessions.command("ruvd.cli.sessions:list_sessions", name="list", help="List the sessions.")
sessions.command("ruvd.cli.sessions:show", name="show", help="Show a session with its messages.")
sessions.command("ruvd.cli.sessions:compact", name="compact", help=_COMPACT)
sessions.command("ruvd.cli.sessions:end", name="end", help=_END)
sessions.command("ruvd.cli.transfer:export_sessions", name="export", help=_EXPORT)
sessions.command("ruvd.cli.transfer:import_sessions", name="import", help=_IMPORT)
app.command(sessions)

token = cyclopts.App(name="token", help="Make the tokens that callers are known by.")
token.command("ruvd.cli.tokens:create", name="create", help=_CREATE)
app.command(token)
app.command("ruvd.cli.rekey:run", name="rekey", help=_REKEY)

key = cyclopts.App(name="key", help="Make the keys that encrypt what the daemon stores.")
key.command("ruvd.cli.keys:create", name="create", help=_CREATE_KEY)
app.command(key)

audit = cyclopts.App(name="audit", help="Check the daemon's audit log.")
audit.command("ruvd.cli.audit:verify", name="verify", help=_VERIFY)
app.command(audit)
