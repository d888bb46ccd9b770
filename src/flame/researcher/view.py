"""Results on one page, served once on this machine's loopback: no script, nothing from elsewhere, no trace.

The address holds a token that counts once; whoever has not got it, or comes second, gets nothing.
"""

from __future__ import annotations

import html
import json
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final, cast

SECONDS: Final = 600
MAX_SHOWN: Final = 2 << 20
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}"
    "pre{background:#f5f5f5;padding:1em;overflow:auto}"
)


def page(results: Sequence[tuple[str, bytes]], nonce: str) -> bytes:
    """Titles and contents as HTML: JSON as tables, other text as it is, anything else by its size."""
    parts = [f"<h2>{html.escape(title)}</h2>{_shown(content)}" for title, content in results]
    head = f'<meta charset="utf-8"><title>Results</title><style nonce="{nonce}">{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>".encode()


def _shown(content: bytes) -> str:
    if len(content) > MAX_SHOWN:
        return f"<p>{len(content)} bytes: too much for a page. Open it without --view.</p>"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return f"<p>{len(content)} bytes that are no text. Open it without --view.</p>"
    try:
        return _table(json.loads(text))
    except (ValueError, RecursionError):
        return f"<pre>{html.escape(text)}</pre>"


def _table(value: Any, depth: int = 0) -> str:
    if depth < 6 and isinstance(value, Mapping) and value:
        rows = "".join(
            f"<tr><th>{html.escape(str(key))}</th><td>{_table(item, depth + 1)}</td></tr>"
            for key, item in value.items()
        )
        return f"<table>{rows}</table>"
    if depth < 6 and isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        columns = list(dict.fromkeys(str(key) for row in value for key in row))
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_table(row.get(column), depth + 1)}</td>" for column in columns) + "</tr>"
            for row in value
        )
        return f"<table><tr>{head}</tr>{rows}</table>"
    if isinstance(value, str):
        return html.escape(value)
    return html.escape(json.dumps(value, ensure_ascii=False))


def show_once(results: Sequence[tuple[str, bytes]], *, browser: bool = True, seconds: float = SECONDS) -> None:
    """Serve the page until it has been fetched once, or the time is over."""
    token, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(16)
    body = page(results, nonce)
    done = threading.Event()
    server = HTTPServer(("127.0.0.1", 0), _handler(f"/{token}", body, nonce, done))
    server.timeout = 1
    address = f"http://127.0.0.1:{server.server_port}/{token}"
    sys.stderr.write(f"{address}\n  It opens once, on this machine, within {seconds / 60:.0f} minutes.\n")
    sys.stderr.flush()
    try:
        if browser:
            import webbrowser

            webbrowser.open(address)
        waited = 0.0
        while not done.is_set() and waited < seconds:
            server.handle_request()
            waited += 1
    finally:
        server.server_close()


def _handler(path: str, body: bytes, nonce: str, done: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Page(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            port = cast("HTTPServer", self.server).server_port
            here = self.headers.get("Host") == f"127.0.0.1:{port}"
            if not here or done.is_set() or not secrets.compare_digest(self.path.encode(), path.encode()):
                self._answer(404, b"There is nothing here.", "text/plain")
                return
            done.set()
            self._answer(200, body, "text/html; charset=utf-8")

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            policy = f"default-src 'none'; style-src 'nonce-{nonce}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(content))),
                ("Content-Security-Policy", policy),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
                ("Connection", "close"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """The address holds the token: it is written nowhere."""

    return Page
