"""Unit tests of what needs no Latchkey. test/python-client.test.ts runs them, and tests the rest with a real one."""

import asyncio
import contextlib
import json
import socket
import threading
import time
import unittest

import latchkey_client
from latchkey_client import Denial, LatchkeyASGI, LatchkeyClient, LatchkeyUnavailable, LatchkeyWSGI, permission_for

TOKEN = "lk_v_secret"
KEY = "lk_k_" + "0" * 26 + "_" + "A" * 40


@contextlib.contextmanager
def server(answer):
    """A server on a socket, without a change stream. `answer(connection, its number)` is called for each request."""
    listener = socket.create_server(("127.0.0.1", 0))
    count = 0

    def accept():
        nonlocal count
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            count += 1
            threading.Thread(target=serve, args=(connection, count), daemon=True).start()

    def serve(connection, number):
        with connection, connection.makefile("rb") as requests, contextlib.suppress(OSError):
            while True:
                request = requests.readline()
                length = 0
                for line in iter(requests.readline, b"\r\n"):
                    if line == b"":
                        return
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                requests.read(length)
                if request.startswith(b"GET "):
                    connection.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
                elif answer(connection, number) == "close":
                    return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def reply(data, status="200 OK"):
    body = json.dumps(data).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


class Options(unittest.TestCase):
    def test_an_impossible_option_is_named(self):
        for options in (
            {"url": "latchkey.internal"},
            {"url": "ftp://latchkey.internal"},
            {"url": "http://user:password@latchkey.internal"},
            {"url": "http://latchkey.internal?x=1"},
            {"token": None},
            {"token": ""},
            {"token": "two words"},
            {"cache_seconds": -1},
            {"cache_seconds": float("nan")},
            {"cache_size": 0},
            {"cache_size": 1.5},
            {"timeout_seconds": 0},
            {"report_every_seconds": float("inf")},
        ):
            with self.subTest(options), self.assertRaisesRegex(ValueError, next(iter(options))):
                LatchkeyClient(**{"url": "http://127.0.0.1:1", "token": TOKEN, **options})

    def test_an_impossible_question_is_rejected(self):
        client = LatchkeyClient("http://127.0.0.1:1", TOKEN)
        for question in ((KEY, "admin", 1), (KEY, "read", -1), (KEY, "read", 1_001), (KEY, "read", 0.5)):
            with self.subTest(question), self.assertRaises(ValueError):
                client.verify(question[0], question[1], cost=question[2])

    def test_impossible_scopes_are_rejected_and_never_ignored(self):
        client = LatchkeyClient("http://127.0.0.1:1", TOKEN)
        for scopes in ("", "read", b"", [""], ["a b"], ['a"'], ["a\\"], ["a\n"], ["é"], ["x" * 101], [1], map(str, range(51))):
            with self.subTest(scopes), self.assertRaisesRegex(ValueError, "scope"):
                client.verify("x", "read", scopes=scopes)
        self.assertEqual(latchkey_client._scopes_in(["b", "a", "b"]), ("b", "a"))

    def test_a_text_that_cannot_be_a_key_is_rejected_without_a_call(self):
        client = LatchkeyClient("http://127.0.0.1:1", TOKEN)
        for text in ("", "x" * 513, "ключ", "\ud800", KEY + "\n"):
            self.assertEqual(client.verify(text, "read").code, "malformed")

    def test_no_text_of_an_object_has_a_secret(self):
        client = LatchkeyClient("http://127.0.0.1:1", TOKEN)
        question = latchkey_client._Question(KEY, "read", None, 1, (), b"")
        known = latchkey_client._Known(b"", latchkey_client.Verdict(True, "valid"), question=question)
        for text in (repr(client), str(client), repr(question), repr(known)):
            self.assertNotIn("secret", text)
            self.assertNotIn(KEY, text)

    def test_only_methods_that_read_need_read(self):
        self.assertEqual([permission_for(one) for one in ("GET", "HEAD", "OPTIONS")], ["read"] * 3)
        self.assertEqual([permission_for(one) for one in ("POST", "DELETE", "get", "QUERY", "")], ["write"] * 5)


class Calls(unittest.TestCase):
    def setUp(self):
        latchkey_client._log.disabled = True

    def unavailable(self, answer):
        """The reason, and how long it took."""
        with server(answer) as url, LatchkeyClient(url, TOKEN, timeout_seconds=0.3) as client:
            started_at = time.monotonic()
            with self.assertRaises(LatchkeyUnavailable) as raised:
                client.verify(KEY, "read")
            self.assertNotIn(KEY, repr(raised.exception))
            return str(raised.exception), time.monotonic() - started_at

    def test_a_reply_that_is_not_from_latchkey_is_no_verdict(self):
        for data in ([], {}, {"data": None}, {"data": []}, {"data": ["valid"]}, {"data": [{"valid": True}]}, "text"):
            with self.subTest(data):
                reason, _ = self.unavailable(lambda connection, _, data=data: connection.sendall(reply(data)))
                self.assertRegex(reason, "Check url")
        for status in ("204 No", "301 Moved", "500 Error", "401 No"):
            with self.subTest(status):
                reason, _ = self.unavailable(lambda connection, _, one=status: connection.sendall(reply({}, one)))
                self.assertRegex(reason, "is not from Latchkey. Check url")

    def test_no_reply_takes_longer_than_the_time_limit(self):
        def drip(connection, _):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)

        for answer in (drip, lambda *_: time.sleep(2)):
            reason, seconds = self.unavailable(answer)
            self.assertEqual(reason, "Latchkey did not answer in time")
            self.assertLess(seconds, 1.5)

    def test_a_long_reply_is_not_read_to_its_end(self):
        def flood(connection, _):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b" " * 65_536)

        self.assertRegex(self.unavailable(flood)[0], "too long|in time")

    def test_a_kept_connection_is_used_again_and_replaced_when_it_is_closed(self):
        verdict = {"valid": False, "code": "not_found", "keyId": None, "organizationId": None, "partnerId": None}
        more = ("partnerExternalId", "partnerEmail", "permission", "scopes", "name", "metadata", "expiresAt", "dependsOnIp", "rateLimit")
        verdict.update({name: None for name in more}, aMemberOfALaterVersion=1)
        posts = []

        def answer(connection, number):
            posts.append(number)
            connection.sendall(reply({"data": [verdict]}))
            return "close" if len(posts) == 3 else None

        with server(answer) as url, LatchkeyClient(url, TOKEN) as client:
            for _ in range(5):
                self.assertEqual(client.verify(KEY, "read").code, "not_found")
        first, second, third, *others = posts
        self.assertTrue(first == second == third != others[0] == others[1], posts)

    def test_threads_get_a_connection_in_their_order_and_only_so_many(self):
        slots, order = latchkey_client._Slots(1), []
        self.assertTrue(slots.acquire(0))
        self.assertFalse(slots.acquire(0.01))

        def use(number):
            self.assertTrue(slots.acquire(30))
            order.append(number)
            slots.release()

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for number, thread in enumerate(threads):
            thread.start()
            while len(slots._waiting) <= number:
                time.sleep(0.001)
        slots.release()
        for thread in threads:
            thread.join()
        self.assertEqual(order, list(range(8)))
        self.assertTrue(slots.acquire(0))
        self.assertFalse(slots.acquire(0))

    def test_the_cache_has_room_for_so_many_keys(self):
        cache = latchkey_client._Cache(2)
        for number in range(5):
            verdict = latchkey_client.Verdict(True, "valid", key_id=f"key_{number}", organization_id="org_1")
            cache.learn(latchkey_client._Question(KEY, "read", None, 1, (), b"%d" % number), verdict, 0)
        self.assertEqual([digest for digest in (b"0", b"1", b"2", b"3", b"4") if cache.get(digest)], [b"3", b"4"])
        self.assertEqual(set(cache._dependents), {"key_3", "key_4", "org_1"})
        cache.forget_dependents(["org_1"])
        self.assertEqual((len(cache._keys), cache._dependents), (0, {}))


class Middleware(unittest.TestCase):
    """Without Latchkey: nothing listens at its address."""

    def setUp(self):
        latchkey_client._log.disabled = True
        self.client = LatchkeyClient("http://127.0.0.1:1", TOKEN)
        self.addCleanup(self.client.close)

    def wsgi(self, environ, **options):
        def app(_, start_response):
            self.fail("the request was allowed")

        replies = []
        middleware = LatchkeyWSGI(app, self.client, **options)
        body = middleware(
            {"REQUEST_METHOD": "GET", **environ}, lambda status, headers: replies.append((status, dict(headers)))
        )
        return (*replies[0], b"".join(body))

    def test_without_latchkey_a_request_is_rejected_with_503_and_retry_after(self):
        status, headers, body = self.wsgi({"HTTP_X_API_KEY": KEY})
        self.assertEqual((status, headers["Retry-After"]), ("503 Service Unavailable", "1"))
        self.assertNotIn(b"refused", body)

    def test_a_rejection_can_have_another_form_but_stays_a_rejection(self):
        def on_denied(denial, environ):
            self.assertIsInstance(denial, Denial)
            denial.status = 418
            denial.headers["Content-Type"] = "text/plain"
            return b"no"

        status, headers, body = self.wsgi({}, on_denied=on_denied)
        self.assertEqual((status, headers["Content-Type"], body), ("418 I'm a Teapot", "text/plain", b"no"))
        self.assertEqual(self.wsgi({"REQUEST_METHOD": "HEAD"}, on_denied=on_denied)[2], b"")

    def test_another_header_is_the_only_one_that_counts(self):
        status, _, body = self.wsgi({"HTTP_AUTHORIZATION": f"Bearer {KEY}"}, header="X-Acme-Key")
        self.assertEqual(status, "401 Unauthorized")
        self.assertIn(b"in X-Acme-Key", body)
        self.assertEqual(self.wsgi({"HTTP_X_ACME_KEY": KEY}, header="X-Acme-Key")[0], "503 Service Unavailable")

    def test_a_wrong_permission_raises_and_does_not_admit_the_request(self):
        with self.assertRaises(ValueError):
            self.wsgi({"HTTP_X_API_KEY": KEY}, permission=lambda _: "all")

    def test_a_closed_client_admits_no_request(self):
        self.client.close()
        self.assertEqual(self.wsgi({"HTTP_X_API_KEY": KEY})[0], "503 Service Unavailable")

    def asgi(self, scope):
        sent = []

        async def app(scope, receive, send):
            await send({"type": "app", "key": scope.get("latchkey.key")})

        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        asyncio.run(LatchkeyASGI(app, self.client)(scope, receive, send))
        return sent

    def test_a_websocket_without_a_key_is_closed_and_lifespan_passes(self):
        websocket = {"type": "websocket", "headers": [], "query_string": b""}
        self.assertEqual(self.asgi(websocket), [{"type": "websocket.close", "code": 1008}])
        self.assertEqual(self.asgi({"type": "lifespan"}), [{"type": "app", "key": None}])
        with self.assertRaises(ValueError):
            self.asgi({"type": "other", "headers": []})

    def test_two_different_authorizations_are_rejected(self):
        headers = [(b"Authorization", f"Bearer {key}".encode()) for key in (KEY, KEY[:-1] + "B")]
        scope = {"type": "http", "method": "GET", "headers": headers, "query_string": b"", "client": None}
        self.assertEqual(self.asgi(scope)[0]["status"], 400)


if __name__ == "__main__":
    unittest.main()
