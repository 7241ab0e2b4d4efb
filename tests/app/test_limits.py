"""What a browser may send: nothing larger than an upload, and no file to be written on this machine."""

import asyncio

import pytest

from softgate.app.limits import BESIDE, Limits


def answered(method="POST", path="/gradio_api/queue/join", headers=(), parts=(), last=b""):
    """The status of a request, and how much of its body the app behind was given."""
    sent, given = [], []
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            given.append(len(message["body"]))
            if not waiting:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.request", "body": last, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(Limits(app, 3_000_000)(scope, receive, send))
    return sent[0]["status"], sum(given)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({}, 200),
        ({"headers": [(b"content-length", b"4999999")]}, 200),
        ({"headers": [(b"content-length", b"5000001")]}, 413),
        ({"path": "/gradio_api/upload"}, 403),
        ({"path": "/gradio_api/upload/"}, 403),
        ({"method": "GET", "path": "/gradio_api/upload"}, 200),
    ],
)
def test_a_request_that_is_too_large_or_would_write_a_file_is_refused(request_, status):
    assert BESIDE == 1_000_000
    assert answered(**request_)[0] == status


def test_a_body_that_does_not_say_its_size_is_read_up_to_the_limit():
    assert answered(parts=[b"0" * 2_000_000] * 9)[1] == 4_000_000
    assert answered(parts=[b"0" * 2_000_000] * 2)[1] == 4_000_000


@pytest.mark.parametrize(
    ("body", "given"),
    [(b'{"event_id": "a"}', 17), (b'{"event_id": null}', 0), (b"{}", 0), (b"[]", 0), (b"no json", 0)],
)
def test_an_event_is_called_off_by_its_number_or_not_at_all(body, given):
    for path in ("/gradio_api/cancel", "/gradio_api/reset"):
        assert answered(path=path, last=body) == (200, given)
