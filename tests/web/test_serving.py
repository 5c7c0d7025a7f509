"""Where the page is served: a free port, and who can reach it."""

import socket

import pytest

from jaxresnet.errors import UserError
from jaxresnet.web import serving
from jaxresnet.web.serving import find_place


def test_the_first_free_port_is_taken(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(serving, "FIRST_PORT", port)
        assert port < find_place("127.0.0.1", 0).port < port + serving.PORTS
        monkeypatch.setattr(serving, "PORTS", 1)
        with pytest.raises(UserError, match=rf"cannot listen on ports {port} to {port} of 127.0.0.1"):
            find_place("127.0.0.1", 0)
        refusal = (
            rf"^cannot listen on port {port} of 127.0.0.1: Address already in use; --port 0 takes the first"
        )
        with pytest.raises(UserError, match=refusal) as error:
            find_place("127.0.0.1", port)
        assert error.value.exit_code == 1


def test_a_host_that_is_not_this_machine_is_refused():
    with pytest.raises(UserError, match=r"cannot listen on port 7860 of 192.0.2.1: Cannot assign requested"):
        find_place("192.0.2.1", 7860)
    with pytest.raises(UserError, match=r"cannot listen on port 7860 of no such host: "):
        find_place("no such host", 7860)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)]
)
def test_only_this_machine_reaches_a_local_place(host: str, local: bool):
    assert find_place(host, 0).local is local
