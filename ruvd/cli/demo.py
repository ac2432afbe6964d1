"""`ruvd demo`: holds one conversation in three ways on this machine, then restarts the daemon.

In the session, each new message is sent once. The two stateless ways resend the system prompt and
the whole history every turn, with the session's answers in it, so that all prompts are the same.
The way that relies on the engine's cache gets a new daemon: on the old one it would find the
session's prompts in the cache and look better than it is.
"""

import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import Parameter, validators
from rich.console import Console
from rich.measure import Measurement
from ruvd_client import Client, Completion, ContextWindow, Message, Role, RuvdError
from ruvd_client.protocol import CompleteArguments, CreateSessionArguments, create_session_request

from ruvd.cli import demo_table
from ruvd.cli.address import Address
from ruvd.cli.console import out, seconds, write
from ruvd.cli.demo_conversation import LAST_TURN, SYSTEM_PROMPT, USER_TURNS
from ruvd.cli.demo_daemon import running
from ruvd.cli.demo_table import Turn, Way
from ruvd.cli.terminal import connected

_NOTE = (
    "Look at the figures and not at the answers: the default model has 135 million parameters, and "
    "at temperature 0 it repeats itself."
)


def demo(
    *,
    engine: Annotated[str, Parameter(help="Engine to measure.")] = "llama",
    turns: Annotated[
        int,
        Parameter(
            validator=validators.Number(gte=1, lte=len(USER_TURNS)),
            help="Number of turns.",
        ),
    ] = len(USER_TURNS),
    max_tokens: Annotated[
        int, Parameter(validator=validators.Number(gte=1), help="Most tokens of an answer.")
    ] = 48,
    keep_state: Annotated[
        Path | None, Parameter(help="Directory in which the sessions are kept afterwards.")
    ] = None,
) -> None:
    """Runs `ruvd demo`."""
    with _unwinding_on_signals(), tempfile.TemporaryDirectory(prefix="ruvd-") as name:
        directory = Path(name)
        state = keep_state or directory
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        Demo(directory, f"sqlite:{state / 'state.db'}", engine, turns, max_tokens).run()


class Demo:
    """One run of the demo."""

    def __init__(
        self, directory: Path, store: str, engine: str, turns: int, max_tokens: int
    ) -> None:
        self._directory = directory
        self._store = store
        self._engine = engine
        self._turns = USER_TURNS[:turns]
        self._session_id = f"demo-{secrets.token_hex(4)}"
        self._options: CompleteArguments = {
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "seed": 1,
        }
        self._answers: list[str] = []
        self._model = ""

    def run(self) -> None:
        """Holds the conversation in every way, prints the table, restarts and goes on."""
        with self._daemon(self._store, "a daemon") as client:
            session = self._in_session(client)
            uncached = self._stateless(client, "stateless, no cache", bypass_cache=True)
        with self._daemon("memory", "a fresh daemon with a cold engine") as client:
            cached = self._stateless(client, "stateless, engine cache", bypass_cache=False)
        out.line()
        table = demo_table.build(session, uncached, cached)
        # As wide as the table needs, because wrapped figures cannot be compared.
        needed = Measurement.get(out, out.options.update(max_width=500), table).maximum
        Console(width=max(out.width, needed), highlight=False).print(table)
        out.line()
        text = demo_table.caption(self._model, self._engine, session, uncached, cached)
        out.print(text, style="dim", markup=False, soft_wrap=False)
        out.rule("the first daemon was stopped with SIGTERM; a new one uses the same store")
        with self._daemon(self._store, "a daemon on the same store") as client:
            self._after_restart(client)

    @contextmanager
    def _daemon(self, store: str, what: str) -> Iterator[Client]:
        with (
            running(self._directory, engine=self._engine, store=store, what=what) as address,
            connected(Address(address)) as client,
        ):
            yield client

    def _in_session(self, client: Client) -> Way:
        way = Way("ruvd session")
        new: CreateSessionArguments = {
            "session_id": self._session_id,
            "system_prompt": SYSTEM_PROMPT,
            # One more than the default, so that the turn after the restart sees the first one.
            "context_window": ContextWindow(max_exchanges=len(USER_TURNS) + 1),
        }
        client.create_session(**new)
        way.sent_bytes = create_session_request(new).ByteSize()
        out.rule(f"{len(self._turns)} turns in session {self._session_id}")
        out.print(_NOTE, style="dim", soft_wrap=False)
        for number, user in enumerate(self._turns, 1):
            answer = self._stream(client, f"turn {number}", user)
            self._record(way, answer)
            self._answers.append(answer.finished.message.content if answer.finished else "")
        return way

    def _stateless(self, client: Client, name: str, *, bypass_cache: bool) -> Way:
        way = Way(name)
        arguments: CompleteArguments = {
            **self._options,
            "system_prompt": SYSTEM_PROMPT,
            "bypass_cache": bypass_cache,
        }
        history: list[Message] = []
        with out.status("") as status:
            for number, (user, session_answer) in enumerate(
                zip(self._turns, self._answers, strict=True), 1
            ):
                status.update(f"{name}: turn {number} of {len(self._turns)} …")
                history.append(Message(role=Role.ROLE_USER, content=user))
                try:
                    with client.complete(history, **arguments) as answer:
                        answer.text()
                except RuvdError as error:
                    if not bypass_cache or error.reason != "ENGINE_REJECTED":
                        raise
                    return Way(name, missing=error.message)
                self._record(way, answer)
                history.append(Message(role=Role.ROLE_ASSISTANT, content=session_answer))
        return way

    def _after_restart(self, client: Client) -> None:
        session = client.get_session(self._session_id)
        out.print(
            f"session {session.id} is still there: {session.exchange_count} exchanges, "
            f"{session.message_count} messages",
            markup=False,
        )
        self._stream(client, f"turn {len(self._turns) + 1}", LAST_TURN)

    def _stream(self, client: Client, title: str, user: str) -> Completion:
        out.print(f"\n{title}  ", style="bold", end="")
        out.print(user, style="cyan", markup=False)
        arguments: CompleteArguments = {**self._options, "session_id": self._session_id}
        with client.complete(user, **arguments) as answer:
            for piece in answer:
                write(piece)
        out.line()
        if answer.finished:
            turn = Turn.from_finished(answer.finished)
            first = None if turn.first_token_ms is None else turn.first_token_ms / 1000
            cached = "-" if turn.cached_tokens is None else turn.cached_tokens
            out.print(
                f"first token {seconds(first)} · total {seconds(turn.total_ms / 1000)} · "
                f"{turn.prompt_tokens} prompt tokens · {cached} cached",
                style="dim",
                markup=False,
            )
        return answer

    def _record(self, way: Way, answer: Completion) -> None:
        if answer.started:
            self._model = answer.started.model
        if answer.finished:
            way.turns.append(Turn.from_finished(answer.finished))
        way.sent_bytes += answer.request.ByteSize()


@contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP unwind as Ctrl-C does, so that no daemon is left behind.

    A signal that was ignored from the start stays ignored: nohup does that to SIGHUP.
    """

    def unwind(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
