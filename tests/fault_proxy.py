"""A network line that a test can make slow, busy, broken, mute or dead. It stands before any server by its address."""

import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

REQUEST = re.compile(rb"[A-Z]+ \S+ HTTP/1\.1(?=\r\n)")  # a client waits for its answer: none begins within a block
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BLOCK = 1 << 16


class FaultProxy:
    """Passes TCP connections on to the server at `target`, an address that may be set later and may change.

    Attributes:
        url: the address to give to clients.
        latency: seconds by which every block is late, both ways.
        busy, reset: shares of HTTP requests that meet a 503, or a TCP reset, in the server's place.
        requests, faults: how many HTTP requests came, and how many of them met such an end.
        unanswered: first lines of the requests that wait for the first block of their answer.
        loses: the answer to the next request in which this is found gets lost, and its connection ends.
    """

    def __init__(self, target: str = "", *, host: str = "127.0.0.1", seed: int = 0):
        self.target = target
        self.latency = self.busy = self.reset = 0.0
        self.requests = self.faults = 0
        self.loses: re.Pattern[bytes] | None = None
        self._random = random.Random(seed)
        self._up, self._flowing = threading.Event(), threading.Event()
        self._up.set()
        self._flowing.set()
        self._unanswered: dict[socket.socket, str] = {}
        self._lost: set[socket.socket] = set()
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0), backlog=128)
        self.netloc = f"{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return urlunsplit(urlsplit(self.target)._replace(scheme="http", netloc=self.netloc))

    @property
    def unanswered(self) -> list[str]:
        return list(self._unanswered.values())

    @contextmanager
    def away(self) -> Iterator[None]:
        """As if the server were gone: every connection ends, and new ones are reset."""
        self.cut()
        yield
        self.mend()

    @contextmanager
    def mute(self) -> Iterator[None]:
        """As if the network were: connections stand and are taken, but nothing passes until afterwards."""
        self._flowing.clear()
        yield
        self.mend()

    def cut(self) -> None:
        self._up.clear()
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """As good as new."""
        self.latency = self.busy = self.reset = 0.0
        self._up.set()
        self._flowing.set()

    def close(self) -> None:
        self.cut()
        self._flowing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        server = urlsplit(self.target)
        try:
            if not self._up.is_set():
                raise ConnectionError
            far = socket.create_connection((str(server.hostname), server.port or 80), timeout=30)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        self._ends |= {near, far}
        answers = threading.Thread(target=self._pass_answers, args=(far, near), daemon=True)
        answers.start()
        self._pass_requests(near, far)
        answers.join()
        self._ends -= {near, far}
        self._unanswered.pop(near, None)
        self._lost.discard(near)
        near.close()
        far.close()

    def _pass_requests(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(BLOCK):
                if line := REQUEST.match(data):
                    self.requests += 1
                    self._unanswered[near] = line[0].decode()
                    fate = self._random.random()
                    if fate < self.busy + self.reset:
                        self.faults += 1
                        self._fail(near, busy=fate < self.busy)
                        break
                if self.loses and self.loses.search(data):
                    self.loses = None
                    self.faults += 1
                    self._lost.add(near)
                self._delay()
                far.sendall(data)
        with suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def _pass_answers(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(BLOCK):
                self._delay()
                if near in self._lost:
                    break
                if not data.startswith(b"HTTP/1.1 100 "):
                    self._unanswered.pop(near, None)
                near.sendall(data)
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)

    def _delay(self) -> None:
        time.sleep(self.latency)
        self._flowing.wait()

    @staticmethod
    def _fail(near: socket.socket, *, busy: bool) -> None:
        if not busy:
            _reset(near)
            return
        near.sendall(BUSY)
        near.shutdown(socket.SHUT_WR)
        near.settimeout(2)
        while near.recv(BLOCK):  # what is left of the request; a reset would overtake the answer
            pass


def _reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
