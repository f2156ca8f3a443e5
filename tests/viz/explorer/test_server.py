from __future__ import annotations

import http.client
import json
import threading
import urllib.request
from contextlib import closing
from email.message import Message
from typing import NamedTuple

import pytest

from radiant_lens.errors import InvalidArgumentError, OutputError
from radiant_lens.viz.explorer import serving


@pytest.fixture
def server(explorer):
    with serving(explorer) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def token(server) -> str:
    return server.address.partition("token=")[2]


class Reply(NamedTuple):
    status: int
    headers: Message
    body: str


def ask(server, path: str, *, method: str = "GET", body: str | None = None, **headers: str) -> Reply:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read().decode())


def test_the_page_and_its_files_need_the_token(server):
    assert server.address.startswith("http://127.0.0.1:") and len(token(server)) >= 32
    for path in ("/", "/explorer.js", "/explorer.css"):
        response = ask(server, f"{path}?token={token(server)}")
        assert response.status == 200 and response.body
        for wrong in ("", "?token=", "?token=wrong", f"?token={token(server)[:-1]}", f"?other={token(server)}"):
            assert ask(server, path + wrong).status == 403
    assert ask(server, f"/settings.py?token={token(server)}").status == 404


def test_other_sites_are_refused(server):
    path = f"/?token={token(server)}"
    assert ask(server, path, Host="evil.example").status == 403
    assert ask(server, path, Host=f"evil.example:{server.port}").status == 403
    assert ask(server, path, Host=f"localhost:{server.port}").status == 200
    message = f"/message?token={token(server)}"
    for origin, status in (("http://evil.example", 403), ("null", 403), (f"http://127.0.0.1:{server.port}", 202)):
        body = json.dumps({"kind": "hello"})
        assert ask(server, message, method="POST", body=body, Origin=origin).status == status


def test_only_this_machine_can_connect(server):
    assert server._http.server_address[0] == "127.0.0.1"


def test_a_page_may_load_nothing_else(server):
    response = ask(server, f"/?token={token(server)}")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert f"nonce-{server.nonce}" in policy and f'nonce="{server.nonce}"' in response.body


def test_messages_go_and_come(server):
    address = server.address.replace("/?", "/events?")
    wanted, seen = {"snapshot", "token", "kl", "answer", "head"}, set()
    with urllib.request.urlopen(address, timeout=60) as events:
        assert events.headers["Content-Type"].startswith("text/event-stream")
        for message in ({"kind": "hello"}, {"kind": "head", "site": [1, 5]}):
            assert ask(server, f"/message?token={token(server)}", method="POST", body=json.dumps(message)).status == 202
        while not wanted <= seen:
            line = events.readline().decode()
            if line.startswith("data: "):
                seen.add(json.loads(line[6:])["kind"])


@pytest.mark.parametrize("body", ["", "not json", "x" * 1_000_001])
def test_a_body_that_is_no_message_is_refused(server, body):
    assert ask(server, f"/message?token={token(server)}", method="POST", body=body).status == 400
    assert ask(server, f"/other?token={token(server)}", method="POST", body="{}").status == 400


def test_texts_of_the_data_do_not_end_the_script(explorer):
    explorer.set(prompt="</script><script>alert(1)</script>")
    with serving(explorer) as server:
        page = server.page()
    assert page.count("</script>") == 2 and "\\u003c/script>" in page


def test_a_port_in_use_is_refused(explorer):
    with serving(explorer) as server:
        with pytest.raises(OutputError, match=rf"Port {server.port} of 127.0.0.1 cannot be opened .*: choose another"):
            with serving(explorer, port=server.port):
                pass
        port = server.port
    with serving(explorer, port=port) as again:
        assert again.port == port
    with pytest.raises(InvalidArgumentError, match="`port` must be a whole number between 0 and 65535; got 70000"):
        with serving(explorer, port=70000):
            pass
