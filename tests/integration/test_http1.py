"""The HTTP/1.1 transport, against a server whose every byte the test chooses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress

import httpx
import pytest

from ruvd.engines.http.http1 import Http1Transport, StaleConnection
from ruvd.engines.http.http1_connection import Connection
from ruvd.engines.http.read_coalescing import CoalescedStream, ReadCoalescer
from ruvd.engines.http.transport import Request, Response

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SECONDS = 10.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[tuple[Http1Transport, str]]:
    """A transport, and the URL of a server that does `handle` with each connection."""

    ended: list[asyncio.Event] = []
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = asyncio.Event()
        ended.append(end)
        writers.append(writer)
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()
            end.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = Http1Transport()
    try:
        async with asyncio.timeout(SECONDS):
            yield transport, f"http://127.0.0.1:{port}/"
    finally:
        await transport.aclose()
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(SECONDS):
            for writer, end in zip(writers, ended, strict=True):
                writer.transport.abort()
                await end.wait()
                with suppress(ConnectionError):
                    await writer.wait_closed()


async def asked(reader: asyncio.StreamReader) -> bytes:
    """The head of the next request."""
    return await reader.readuntil(b"\r\n\r\n")


def answering(*answers: bytes, close: bool = False) -> Handle:
    """Gives these answers, in order, to the requests on each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await asked(reader)
            writer.write(answer)
            await writer.drain()
        if not close:
            await reader.read()

    return handle


def asking(url: str, *headers: tuple[bytes, bytes]) -> Request:
    return Request("GET", httpx.URL(url), [(b"Host", b"here"), *headers])


async def get(transport: Http1Transport, url: str) -> tuple[int, bytes]:
    async with aclosing(await transport.send(asking(url))) as response:
        return response.status, await whole(response)


async def whole(response: Response) -> bytes:
    """The body."""
    parts = []
    while part := await response.read():
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        CHUNKED + b"1;x=y\r\no\r\n1\r\nk\r\n0\r\nT: 1\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length:2\r\nX: caf\xe9\r\n\r\nok",
    ],
    ids=["length", "chunks", "hints before it", "bare line feeds", "odd headers"],
)
async def test_an_answer_is_read_however_it_is_framed_and_its_connection_used_again(
    answer: bytes,
) -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await asked(reader)
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()

    async with serving(handle) as (transport, url):
        for _ in range(3):
            assert await get(transport, url) == (200, b"ok")
    assert connections == 1


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\nas long as it is"
    async with serving(answering(answer, close=True)) as (transport, url):
        for _ in range(2):
            assert await get(transport, url) == (200, b"as long as it is")


async def test_an_answer_that_is_cut_is_an_error() -> None:
    for answer in (OK[:-1], CHUNKED + b"5\r\nab"):
        async with serving(answering(answer, close=True)) as (transport, url):
            with pytest.raises(httpx.ReadError):
                await get(transport, url)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"],
    ids=["nothing", "half a line", "another protocol", "no status"],
)
async def test_what_is_no_answer_is_a_protocol_error(answer: bytes) -> None:
    async with serving(answering(answer, close=True)) as (transport, url):
        with pytest.raises(httpx.RemoteProtocolError) as raised:
            await get(transport, url)
    assert not isinstance(raised.value, StaleConnection)


async def test_a_head_without_an_end_is_refused() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: " + b"y" * 1000 + b"\r\n")
            await writer.drain()

    async with serving(handle) as (transport, url):
        with pytest.raises(httpx.RemoteProtocolError, match="no end"):
            await get(transport, url)


async def test_a_kept_connection_that_the_server_has_closed_is_told_from_a_new_one() -> None:
    """Only a closed idle connection is no failure of the server."""
    closing = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(OK)
        await asked(reader)
        closing.set()  # the second request is read, and not answered

    async with serving(handle) as (transport, url):
        assert await get(transport, url) == (200, b"ok")
        with pytest.raises(StaleConnection):
            await get(transport, url)
        assert closing.is_set()
        assert await get(transport, url) == (200, b"ok")


async def test_a_second_answer_that_nobody_asked_for_is_not_taken_for_the_next() -> None:
    async with serving(answering(OK + OK.replace(b"ok", b"no"))) as (transport, url):
        for _ in range(3):
            assert await get(transport, url) == (200, b"ok")


@pytest.mark.parametrize("head", [b"", OK[:-1]], ids=["before its head", "before its end"])
async def test_leaving_an_answer_closes_its_connection(head: bytes) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(head)
        begun.set()
        assert await reader.read() == b""
        gone.set()

    async with serving(handle) as (transport, url):
        task = asyncio.create_task(get(transport, url))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()


async def test_a_server_that_is_faster_than_the_reader_has_to_wait() -> None:
    """The buffer has a limit, whatever the server sends."""
    size, sent = 32 << 20, 0
    written = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16
        written.set()

    async with serving(handle) as (transport, url):
        response = await transport.send(asking(url))
        before = -1
        while sent != before:  # until the server is blocked
            before = sent
            await asyncio.sleep(0.2)
        assert sent < size
        assert len(await whole(response)) == size
        await written.wait()


@pytest.mark.parametrize("endless", [b"1;" + b"x" * (1 << 20), b"0\r\n" + b"T: x\r\n" * (1 << 17)])
async def test_much_beside_a_body_is_an_error_and_nobody_waits_for_it(endless: bytes) -> None:
    async with serving(answering(CHUNKED + b"2\r\nok\r\n" + endless)) as (transport, url):
        response = await transport.send(asking(url))
        with pytest.raises(httpx.RemoteProtocolError):
            await whole(response)


async def test_a_response_that_was_left_reads_nothing_of_the_next_one() -> None:
    async with serving(answering(OK, OK)) as (transport, url):
        first = await transport.send(asking(url))
        assert await whole(first) == b"ok"
        await first.aclose()
        async with aclosing(await transport.send(asking(url))) as second:
            with pytest.raises(httpx.StreamClosed):
                await first.read()
            assert await whole(second) == b"ok"


async def test_a_header_of_two_lines_is_never_sent() -> None:
    async with serving(answering(OK)) as (transport, url):
        with pytest.raises(httpx.LocalProtocolError):
            await transport.send(asking(url, (b"X", b"a\r\nY: b")))


async def test_nobody_listening_is_a_connect_error() -> None:
    transport = Http1Transport()
    with pytest.raises(httpx.ConnectError):
        await get(transport, "http://127.0.0.1:1/")


async def test_a_response_that_was_left_does_not_close_the_next_ones_connection() -> None:
    async with serving(answering(OK, CHUNKED + b"2\r\nno\r\n")) as (transport, url):
        first = await transport.send(asking(url))
        assert await whole(first) == b"ok"
        await first.aclose()
        async with aclosing(await transport.send(asking(url))) as second:
            await first.aclose()
            assert await second.read() == b"no"


async def test_headers_are_found_by_their_names_in_any_case() -> None:
    answer = OK.replace(b"Content-Length", b"CONTENT-type: a/b\r\ncontent-length")
    async with serving(answering(answer)) as (transport, url):
        response = await transport.send(asking(url))
        assert (response.header("Content-Type"), response.header("Retry-After")) == ("a/b", "")


class RecordingTransport(asyncio.Transport):
    """A transport without a socket, which knows whether it is being read."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reading_now = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_reading_now = False

    def resume_reading(self) -> None:
        self.is_reading_now = True


@pytest.mark.parametrize(("size", "reusable"), [(1 << 17, True), (1 << 18, False)])
async def test_a_connection_with_a_large_answer_that_nobody_read_is_not_used_again(
    size: int,
    reusable: bool,  # noqa: FBT001
) -> None:
    """Reading is paused there, so the next answer would never arrive."""
    transport = RecordingTransport()
    connection = Connection(ReadCoalescer())
    connection.connection_made(transport)
    exchange = asyncio.create_task(connection.exchange(b"", close_after=False))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    await exchange
    for _ in range(size >> 16):
        connection.data_received(bytes(1 << 16))
    assert transport.is_reading_now is reusable
    assert connection.is_reusable is reusable
    read = 0
    while not connection.is_whole:
        read += len(await connection.read())
    assert read == size
    assert transport.is_reading_now
    assert connection.is_reusable


async def test_of_many_streams_that_are_read_slowly_one_gets_a_part_in_several_passes() -> None:
    """They stopped everything else for 100 ms and more at each pass of the loop.

    With a part at each pass, new calls waited for seconds: gRPC takes one in about five passes.
    """
    size, coalescer, parts = 1 << 17, ReadCoalescer(), 0

    async def read_all(connection: Connection) -> int:
        nonlocal parts
        read = 0
        while part := await connection.read():
            parts += 1
            read += len(part)
        return read

    readers = []
    for _ in range(20):
        connection = Connection(coalescer)
        connection.connection_made(RecordingTransport())
        exchange = asyncio.create_task(connection.exchange(b"", close_after=False))
        await asyncio.sleep(0)
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await exchange
        connection.data_received(bytes(size))
        readers.append(asyncio.create_task(read_all(connection)))
    await asyncio.sleep(0)  # each has its first part
    first, parts_at_pass = parts, [parts]
    while not all(reader.done() for reader in readers):
        await asyncio.sleep(0)
        parts_at_pass.append(parts)
    assert [reader.result() for reader in readers] == [size] * 20
    most = max(later - now for now, later in itertools.pairwise(parts_at_pass))
    assert most <= 2  # the last part of a stream comes with the next one's
    assert len(parts_at_pass) >= 5 * (parts - first)


async def test_a_body_that_arrives_at_once_is_read_in_parts_and_others_go_on_in_between() -> None:
    """A stream of 250 kB took 10 ms, for each of many streams at each pass of the loop."""
    events = [b"data: %06d\n\n" % number for number in range(20_000)]
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in events]
    answer = CHUNKED + b"".join(chunks) + b"0\r\n\r\n"
    async with serving(answering(answer)) as (transport, url):
        async with aclosing(await transport.send(asking(url))) as response:
            parts: list[bytes] = []
            passes: list[int] = []

            async def go_on() -> None:
                while True:
                    passes.append(len(parts))
                    await asyncio.sleep(0)

            other = asyncio.create_task(go_on())
            while part := await response.read():
                parts.append(part)
            other.cancel()
        assert b"".join(parts) == b"".join(events)
        assert max(map(len, parts)) <= 16 << 10
        assert set(passes) >= set(range(1, len(parts)))  # after each part


async def test_a_body_without_chunks_is_read_in_parts_too() -> None:
    body = bytes(range(256)) * 4000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serving(answering(answer, OK)) as (transport, url):
        async with aclosing(await transport.send(asking(url))) as response:
            parts = [part async for part in reading(response)]
        assert b"".join(parts) == body
        assert max(map(len, parts)) <= 16 << 10
        assert await get(transport, url) == (200, b"ok")


async def reading(response: Response) -> AsyncIterator[bytes]:
    while part := await response.read():
        yield part


async def test_the_kernel_keeps_what_arrives_in_a_rest() -> None:
    """The event loop is not woken for it. A lost connection is not delayed."""
    few = ReadCoalescer()  # nothing rests by itself
    woken: asyncio.Queue[None] = asyncio.Queue()

    class Receiver(asyncio.Protocol):
        def __init__(self) -> None:
            self.stream = CoalescedStream(lambda: woken.put_nowait(None))
            self.received: list[bytes] = []
            self.lost = asyncio.Event()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.stream.connected(transport)

        def data_received(self, data: bytes) -> None:
            self.received.append(data)
            few.data_arrived(self.stream)

        def connection_lost(self, error: Exception | None) -> None:
            self.stream.disconnected()
            self.lost.set()

    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1")
    host, port = server.sockets[0].getsockname()
    transport, receiver = await asyncio.get_running_loop().create_connection(Receiver, host, port)
    writer = await accepted.get()
    writer.write(b"1")
    await woken.get()
    receiver.stream.rest()
    for _ in range(5):
        writer.write(b"x")
        await asyncio.sleep(0.001)
    assert receiver.received == [b"1"]
    receiver.stream.end_rest()
    await woken.get()
    assert receiver.received == [b"1", b"xxxxx"]
    receiver.stream.rest()
    writer.close()
    await receiver.lost.wait()
    transport.close()
    server.close()


async def test_answers_of_many_streams_are_whole_although_their_reads_are_put_off() -> None:
    """Also those after the first on each connection, which may begin while its last rest lasts."""
    answers, tokens = 3, 12

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await asked(reader)
            writer.write(CHUNKED)
            for token in range(tokens):
                writer.write(b"3\r\n%03d\r\n" % token)
                await asyncio.sleep(0.002)
            writer.write(b"0\r\n\r\n")

    async def ask(transport: Http1Transport, url: str) -> None:
        whole_text = b"".join(b"%03d" % token for token in range(tokens))
        for _ in range(answers):
            assert await get(transport, url) == (200, whole_text)

    async with serving(handle) as (transport, url), asyncio.TaskGroup() as group:
        for _ in range(24):
            group.create_task(ask(transport, url))
