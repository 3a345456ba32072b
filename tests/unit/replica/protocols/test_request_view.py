"""What hooks see of a request."""

from __future__ import annotations

from typing import Any

from cortex.replica.protocols.request_view import Headers, RequestView
from cortex.replica.transport.http import Exchange


def exchange(**fields: Any) -> Exchange:
    made = Exchange(None)  # type: ignore[arg-type]
    made.take_headers(fields.pop("headers", {}))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_the_request_as_hooks_see_it() -> None:
    view = RequestView(
        exchange(
            id="r",
            target=b"/a/b?x=1&y=%20z&x=2&flag",
            headers={b"content-type": b"Image/PNG; a=b", b"x-user": b"m\xfcller"},
            body=b"123",
            warmup=True,
        )
    )
    assert (view.id, view.body, view.warmup) == ("r", b"123", True)
    assert view.query == {"x": "2", "y": " z", "flag": ""}
    assert view.content_type == "image/png"
    assert view.headers["X-User"] == view.headers["x-user"] == "müller"
    assert "x-none" not in view.headers
    assert view.headers.get("X-None") is None
    view.state["seen"] = True
    assert view.state == {"seen": True}


def test_headers_are_a_mapping() -> None:
    headers = Headers({"a": "1"})
    assert dict(headers) == {"a": "1"}
    assert repr(headers) == "{'a': '1'}"
    assert len(headers) == 1
