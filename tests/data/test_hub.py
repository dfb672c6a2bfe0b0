import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import constants

from asnn_goose.data import hub
from asnn_goose.data.hub import hub_answers, quiet_hub_logs

SLACK_SECONDS = 1.0
"""What a busy machine may add to a time limit."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    servers = []

    def serve_status(status: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")

    yield serve_status
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "answers"), [(200, True), (302, True), (404, True), (500, False), (503, False)])
@pytest.mark.usefixtures("closed_hub")
def test_hub_answers_unless_it_fails(serve: Callable[[int], None], status: int, answers: bool) -> None:
    serve(status)
    assert hub_answers() is answers


@pytest.mark.usefixtures("closed_hub")
def test_closed_hub_does_not_answer() -> None:
    assert hub_answers() is False


@pytest.mark.parametrize("endpoint", ["", "nonsense", "http://[", "ftp://127.0.0.1"])
@pytest.mark.usefixtures("closed_hub")
def test_endpoint_that_is_no_address_does_not_answer(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert hub_answers() is False


@pytest.mark.usefixtures("closed_hub")
def test_hub_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch, serve: Callable[[int], None]) -> None:
    serve(200)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("asked"))
    assert hub_answers() is False


@pytest.mark.usefixtures("closed_hub")
def test_silent_server_is_left_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert hub_answers(timeout_seconds=0.5) is False
    assert time.monotonic() - started < 0.5 + SLACK_SECONDS


@pytest.mark.usefixtures("closed_hub")
def test_silent_name_server_is_left_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(hub, "get_session", released.wait)
    started = time.monotonic()
    assert hub_answers(timeout_seconds=0.2) is False
    assert time.monotonic() - started < 0.2 + SLACK_SECONDS
    released.set()


def test_logs_are_silent_inside_and_restored_after() -> None:
    library = logging.getLogger("datasets")
    level = library.level
    with quiet_hub_logs():
        assert not logging.getLogger("datasets.load").isEnabledFor(logging.CRITICAL)
    assert library.level == level
