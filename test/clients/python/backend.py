"""A backend that test/python-client.test.ts starts: `backend.py wsgi` or `backend.py asgi`."""

import asyncio
import collections
import json
import logging
import os
import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from latchkey_client import LatchkeyASGI, LatchkeyClient, LatchkeyWSGI

logging.basicConfig(level=logging.INFO)
counts = collections.Counter()


def count(name, detail):
    counts[name + " " + detail["source"] if name == "verified" else name] += 1


client = LatchkeyClient(
    os.environ["LATCHKEY_URL"],
    os.environ["LATCHKEY_TOKEN"],
    on_event=count,
    **json.loads(os.environ.get("OPTIONS", "{}")),
)


def permission_of(path, method):
    """Only what differs from the method's own permission."""
    return {"/state": "none", "/search": "read"}.get(path)


def answer(path, method, key):
    if path == "/state":
        return {"isLive": client.is_live(), "counts": counts, "client": repr(client)}
    return {"key": key and {**vars(key), "rate_limit": key.rate_limit and vars(key.rate_limit)}}


def wsgi_app(environ, start_response):
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    body = json.dumps(answer(path, method, environ["latchkey.key"])).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi_app(scope, receive, send):
    body = json.dumps(answer(scope["path"], scope["method"], scope["latchkey.key"])).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class ThreadedServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 100


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def serve_wsgi():
    def permission(environ):
        return permission_of(environ["PATH_INFO"], environ["REQUEST_METHOD"])

    app = LatchkeyWSGI(wsgi_app, client, permission=permission)
    with make_server("127.0.0.1", 0, app, ThreadedServer, QuietHandler) as server:
        print(f"Listening on {server.server_port}", flush=True)
        server.serve_forever()


async def serve_asgi():
    """As much of an ASGI server as the tests need: one request for each connection."""
    app = LatchkeyASGI(asgi_app, client, permission=lambda scope: permission_of(scope["path"], scope["method"]))

    async def handle(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        path, _, query = target.partition("?")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        scope["client"] = writer.get_extra_info("peername")

        async def send(message):
            if message["type"] == "http.response.start":
                lines = [name + b": " + value for name, value in message["headers"]]
                status = b"HTTP/1.1 %d Status" % message["status"]
                writer.write(b"\r\n".join([status, b"connection: close", *lines, b"", b""]))
            else:
                writer.write(message["body"])

        await app(scope, None, send)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(f"Listening on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if sys.argv[1] == "wsgi":
    serve_wsgi()
else:
    asyncio.run(serve_asgi())
