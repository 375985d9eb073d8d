"""The faulty line itself, before a real HTTP server: each fault is what it says, and none is there unasked."""

import http.client
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from fault_proxy import FaultProxy


class Echo(BaseHTTPRequestHandler):
    """Answers with the body of the request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing between the tests."""


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """Address of the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def line(echo: str) -> Iterator[FaultProxy]:
    line = FaultProxy(echo)
    yield line
    line.close()


def said(line: FaultProxy, body: bytes = b"word", timeout: float = 30) -> str:
    """What came of one request: the echo, a status, or the kind of failure."""
    connection = http.client.HTTPConnection(line.netloc, timeout=timeout)
    try:
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        return "echo" if (answer.status, answer.read()) == (200, body) else str(answer.status)
    except http.client.RemoteDisconnected:
        return "closed"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except TimeoutError:
        return "nothing"
    finally:
        connection.close()


def test_a_good_line_changes_nothing(line: FaultProxy):
    with requests.Session() as session:  # one connection
        for size in (0, 1, 65_535, 65_536, 3_000_000):
            body = os.urandom(size)
            assert session.post(line.url, body, timeout=30).content == body
    assert (line.requests, line.faults, line.unanswered) == (5, 0, [])


def test_shares_are_those_of_requests(line: FaultProxy):
    line.busy, line.reset = 0.3, 0.2
    counts = Counter(said(line, b"x" * 100_000) for _ in range(200))
    assert set(counts) == {"echo", "503", "reset"}
    assert (line.requests, line.faults) == (200, counts["503"] + counts["reset"])
    # four standard deviations of a binomial share about its mean
    assert abs(counts["503"] - 60) < 26 and abs(counts["reset"] - 40) < 23
    line.mend()
    assert said(line) == "echo"


@pytest.mark.parametrize(("attribute", "word"), [("busy", "503"), ("reset", "reset")])
def test_a_share_of_one_is_every_request(line: FaultProxy, attribute: str, word: str):
    setattr(line, attribute, 1.0)
    assert {said(line) for _ in range(5)} == {word}


def test_away_is_reset_at_once_for_old_and_new_connections(line: FaultProxy):
    connection = http.client.HTTPConnection(line.netloc)
    connection.request("POST", "/", b"word")
    assert connection.getresponse().read() == b"word"
    with line.away():
        assert connection.sock.recv(1) == b"", "the connection that stood has ended"
        assert said(line) == "reset"
    assert said(line) == "echo"


def test_an_answer_is_lost_once_by_what_was_asked(line: FaultProxy):
    line.loses = re.compile(b"o.d")
    assert [said(line, body) for body in (b"new", b"old", b"old")] == ["echo", "closed", "echo"]
    assert line.faults == 1


def test_a_mute_line_passes_everything_on_afterwards(line: FaultProxy):
    answers: list[str] = []
    with line.mute():
        assert said(line, timeout=0.3) == "nothing"
        waiting = threading.Thread(target=lambda: answers.append(said(line)))
        waiting.start()
        while not any(request.startswith("POST / ") for request in line.unanswered):
            time.sleep(0.01)
        assert waiting.is_alive()
    waiting.join()
    assert answers == ["echo"]


def test_latency_is_added_both_ways(line: FaultProxy):
    line.latency = 0.2
    started = time.monotonic()
    assert said(line) == "echo"
    assert time.monotonic() - started >= 0.4
