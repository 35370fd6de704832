"""A proxy before an S3 server that makes it slow and unreliable, by a seed.

Requests pass with their Host as the client signed it. A fault is drawn for each: an answer of 500 or of 503 SlowDown
without asking the server, silence until the client gives up, a reset before the server gets the request or after it has
executed it, and an answer whose body ends early. Requests can also be refused as S3 refuses an expired token.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

FAULTS = ("500", "503", "silence", "reset", "lost", "short")
_EXPIRED = ("403 Forbidden", "ExpiredToken")
_ERRORS = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}


@dataclass
class FaultProxy:
    """Runs in its own thread from `start` to `stop`. Settings may be changed while it runs."""

    upstream: str  # URL of the server
    fault_share: float = 0.0  # of requests
    faults: tuple[str, ...] = FAULTS
    latency_s: float = 0.0  # before each request
    silence_s: float = 5.0  # of a silent fault; the client's own limit may be shorter
    denied: str = ""  # pattern of targets (path?query) that are refused as if the token had expired
    seed: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by HTTP method
    injected: Counter[str] = field(default_factory=Counter)  # by fault
    endpoint: str = ""

    def start(self) -> None:
        self._random = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def fail(self, share: float, *, seed: int = 0) -> None:
        """From now on this share of the requests fails, drawn from the seed."""
        self._random, self.fault_share = random.Random(seed), share

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20))
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._pass_on(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client or the server is gone: the other side sees the connection end
        except asyncio.CancelledError:
            pass  # the proxy stops; asyncio's streams would report it
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. True if the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        (method, target), headers = head.decode("latin-1").split(" ", 2)[:2], _headers(head)
        if headers.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests[method] += 1
        await asyncio.sleep(self.latency_s)
        if self.denied and re.search(self.denied, target):
            return await _refuse(writer, method, *_EXPIRED)
        fault = self._random.choice(self.faults) if self._random.random() < self.fault_share else ""
        if fault:
            self.injected[fault] += 1
        if fault in _ERRORS:
            return await _refuse(writer, method, *_ERRORS[fault])
        if fault == "silence":
            await asyncio.sleep(self.silence_s)
            return False
        if fault == "reset":
            _reset(writer)
            return False
        answer, payload = await self._ask(method, _without_expect(head), body)
        if fault == "lost":
            _reset(writer)
            return False
        if fault == "short" and payload:
            writer.write(answer + payload[: len(payload) // 2])
            await writer.drain()
            return False
        writer.write(answer + payload)
        await writer.drain()
        return True

    async def _ask(self, method: str, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """The server's answer, head and body, over a new connection."""
        parts = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
        try:
            writer.write(head + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            while answer.startswith(b"HTTP/1.1 100"):
                answer = await reader.readuntil(b"\r\n\r\n")
            headers, status = _headers(answer), answer.split(b" ", 2)[1]
            if method == "HEAD" or status in (b"204", b"304"):
                return answer, b""
            if headers.get("transfer-encoding", "").lower() == "chunked":
                payload = await _dechunk(reader)
                return _with_length(answer, len(payload)), payload
            return answer, await reader.readexactly(int(headers.get("content-length", "0")))
        finally:
            writer.close()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


def _without_expect(head: bytes) -> bytes:
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))


def _with_length(head: bytes, length: int) -> bytes:
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"transfer-encoding:")]
    return b"\r\n".join([*lines, f"Content-Length: {length}".encode(), b"", b""])


async def _dechunk(reader: asyncio.StreamReader) -> bytes:
    payload = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        payload += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return payload


async def _refuse(writer: asyncio.StreamWriter, method: str, status: str, code: str) -> bool:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + (b"" if method == "HEAD" else body))
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    opened = writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
