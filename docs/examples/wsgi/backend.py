"""Issues, in memory. A key that may read lists them, a key that may write creates them."""

import json
import os
import socketserver
from wsgiref.simple_server import WSGIServer, make_server

from latchkey_client import LatchkeyClient, LatchkeyWSGI

issues = [{"id": 1, "title": "The door squeaks", "createdBy": None}]


def application(environ, start_response):
    """GET needs the permission read and POST needs write, without any configuration."""
    route = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if route == ("GET", "/health"):
        return reply(start_response, "200 OK", {"ok": True})
    if route == ("GET", "/issues"):
        return reply(start_response, "200 OK", {"data": issues})
    if route == ("POST", "/issues"):
        try:
            title = json.loads(environ["wsgi.input"].read(min(int(environ["CONTENT_LENGTH"]), 10_000)))["title"]
        except (ValueError, KeyError, TypeError):
            return reply(start_response, "400 Bad Request", {"detail": "The body must be JSON with a title."})
        issues.append({"id": len(issues) + 1, "title": str(title), "createdBy": environ["latchkey.key"].id})
        return reply(start_response, "201 Created", issues[-1])
    return reply(start_response, "404 Not Found", {"detail": "There is no such page."})


def reply(start_response, status, data):
    body = json.dumps(data).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def permission(environ):
    """Health checks send no key."""
    return "none" if environ["PATH_INFO"] == "/health" else None


class ThreadedServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


if __name__ == "__main__":
    url = os.environ.get("LATCHKEY_URL", "http://127.0.0.1:8080")
    with LatchkeyClient(url, os.environ["LATCHKEY_TOKEN"]) as client:
        app = LatchkeyWSGI(application, client, permission=permission)
        with make_server("127.0.0.1", int(os.environ.get("PORT", "3000")), app, ThreadedServer) as server:
            print(f"Listening on http://127.0.0.1:{server.server_port}", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                pass
