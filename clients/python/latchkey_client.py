"""Verifies API keys with Latchkey, and from memory while the changes of keys are followed.

    from latchkey_client import LatchkeyClient, LatchkeyWSGI

    client = LatchkeyClient("https://latchkey.internal", os.environ["LATCHKEY_TOKEN"])
    application = LatchkeyWSGI(application, client)

Threads may share a client. After a fork, the child has an empty cache and connections of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import hashlib
import http.client
import json
import logging
import math
import os
import random
import re
import socket
import ssl
import threading
import time
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Callable, Iterable
from urllib.parse import unquote_plus, urlsplit

__version__ = "0.1.0"
__all__ = [
    "ApiKey",
    "CostExceedsLimit",
    "Denial",
    "LatchkeyASGI",
    "LatchkeyClient",
    "LatchkeyUnavailable",
    "LatchkeyWSGI",
    "RateLimit",
    "Verdict",
    "permission_for",
]

_log = logging.getLogger("latchkey_client")

# Requests to Latchkey at once, and verifications of an event loop that may wait for one.
_CONNECTIONS = 8
_MOST_WAITING = 1_000
_REPORTS_IN_REQUEST = 250
# Bytes.
_LONGEST_REPLY = 1_048_576
_LONGEST_EVENT = 262_144
_LONGEST_KEY = 512
_LONGEST_ADDRESS = 80
_GREATEST_COST = 1_000
# Permissions and addresses per cached key.
_MOST_GRANTS = 200
# Cached verdicts are not used if the changes are older than this.
_SILENCE_ALLOWED_SECONDS = 5.0
_LATE_HEARTBEATS_ALLOWED = 3
_RECONNECT_SECONDS = (0.25, 5.0)
# A call on a kept connection that fails sooner found the connection closed.
_QUICK_FAILURE_SECONDS = 1.0
# This part of a remaining limit may be used before it is reported: 16 backends together cannot exceed the limit.
_CREDIT_SHARE = 16
_TROUBLE_EVERY_SECONDS = 60.0

_KEY = re.compile(r"[\x20-\x7e]+")
# RFC 6749 section 3.3, and what Latchkey accepts.
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,100}")
_MOST_SCOPES = 50
_KEY_IN_QUERY = re.compile(r"_k_[0-7][0-9a-hjkmnp-tv-z]{25}_[0-9A-Za-z]{40}")
# A rejection for these reasons says nothing about other uses of the key.
_ABOUT_THIS_USE = ("ip_not_allowed", "insufficient_permission", "insufficient_scope")
_NOT_LATCHKEY = "The reply is not from this version of Latchkey. Check url."


class LatchkeyUnavailable(Exception):
    """Latchkey did not answer, and no cached verdict may be used. Reject the request with 503."""


class CostExceedsLimit(Exception):
    """A use costs more than a whole window of one of the key's limits, so waiting does not help."""


@dataclass(frozen=True)
class RateLimit:
    """The state of a limit. `policy` is `owner` or `key`."""

    policy: str
    limit: int
    window_seconds: int
    remaining: int
    reset_seconds: int


@dataclass(frozen=True)
class Verdict:
    """The verdict about a key, as `POST /v1/verify` returns it.

    code: `valid`, or why the key is rejected.
    partner_id: None for the organization's own keys.
    partner_external_id: the partner's id in the organization's own system.
    permission: `read`, `write` or `read_write`.
    depends_on_ip: whether the key has allowedIps, so that the verdict is valid only for this address.
    rate_limit: the limit with the least remaining; None if the key was rejected for another reason.
    """

    valid: bool
    code: str
    key_id: str | None = None
    organization_id: str | None = None
    partner_id: str | None = None
    partner_external_id: str | None = None
    partner_email: str | None = None
    permission: str | None = None
    scopes: list[str] | None = None
    name: str | None = None
    metadata: dict[str, Any] | None = None
    expires_at: str | None = None
    depends_on_ip: bool | None = None
    rate_limit: RateLimit | None = None


def permission_for(method: str) -> str:
    """GET, HEAD and OPTIONS need `read`, all other methods `write`."""
    return "read" if method in ("GET", "HEAD", "OPTIONS") else "write"


class _CallFailed(Exception):
    """A call to Latchkey failed.

    why: `refused`: Latchkey rejects the token. `broken`: uses may have been counted. `busy`: no connection was free.
        `unavailable`: Latchkey could not be reached or could not answer; nothing was counted.
    """

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


def _from_json(kind: Any, data: dict[str, Any]) -> Any:
    """Members that this version does not know are ignored."""
    return kind(**{one.name: data[re.sub("_(.)", lambda match: match[1].upper(), one.name)] for one in fields(kind)})


def _verdict_in(answer: dict[str, Any]) -> Verdict:
    if answer.get("code") == "cost_exceeds_limit":
        raise CostExceedsLimit(answer.get("detail"))
    if "valid" not in answer:
        message = f"Latchkey could not verify the key ({answer.get('status')}): {answer.get('detail')}"
        raise _CallFailed("unavailable", message)
    try:
        limit = answer["rateLimit"]
        return _from_json(Verdict, {**answer, "rateLimit": limit and _from_json(RateLimit, limit)})  # type: ignore
    except (KeyError, TypeError):
        raise _CallFailed("unavailable", _NOT_LATCHKEY) from None


def _scopes_in(given: Iterable[str]) -> tuple[str, ...]:
    """The scopes of a question, once each. A text alone would be read as its characters, and an empty one as none."""
    scopes = () if isinstance(given, (str, bytes)) else tuple(dict.fromkeys(given))
    if isinstance(given, (str, bytes)) or len(scopes) > _MOST_SCOPES:
        raise ValueError(f"scopes must be a list of at most {_MOST_SCOPES} texts")
    for scope in scopes:
        if not isinstance(scope, str) or not _SCOPE_TOKEN.fullmatch(scope):
            raise ValueError("a scope must be 1 to 100 characters of printable ASCII without space, \" and \\")
    return scopes


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _text_of(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Slots:
    """A semaphore that serves threads in their order. `threading.Semaphore` may serve the latest ones only."""

    def __init__(self, free: int) -> None:
        self._lock = threading.Lock()
        self._free = free
        self._waiting: deque[threading.Event] = deque()

    def acquire(self, timeout: float) -> bool:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        try:
            turn.wait(timeout)
        finally:
            with self._lock:
                is_free = turn.is_set()
                if not is_free:
                    self._waiting.remove(turn)
        return is_free

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class _Service:
    """Calls Latchkey on a few connections that are kept open."""

    def __init__(self, url: str, token: str, timeout: float, context: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._address, self._path = (parts.hostname or "", parts.port), parts.path.rstrip("/")
        self._context = context or ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": f"latchkey-client/{__version__}"}
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._slots = _Slots(_CONNECTIONS)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = (
            http.client.HTTPConnection(*self._address, timeout=timeout)
            if self._context is None
            else http.client.HTTPSConnection(*self._address, timeout=timeout, context=self._context)
        )
        connection.connect()
        return connection

    def open_changes(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        connection.request("GET", f"{self._path}/v1/changes", headers={**self._headers, "Accept": "text/event-stream"})
        response = connection.getresponse()
        if response.status == 200 and response.getheader("Content-Type", "").startswith("text/event-stream"):
            return response
        with response:
            # Only the beginning of another reply is read: the reply may not end.
            raise _refusal(response.status, response.read1(65_536))

    def verify_batch(self, entries: list[dict[str, Any]], fresh: bool) -> list[dict[str, Any]]:
        """Verifies all entries in one request. `fresh` reads the records from the database. Raises _CallFailed."""
        headers = {**self._headers, "Content-Type": "application/json"}
        if fresh:
            headers["Cache-Control"] = "no-cache"
        if not self._slots.acquire(self._timeout):
            raise _CallFailed("busy", "Latchkey was busy with other questions for too long.")
        try:
            status, text = self._post(json.dumps({"entries": entries}).encode(), headers)
        finally:
            self._slots.release()
        if status != 200:
            raise _refusal(status, text)
        try:
            answers = json.loads(text)["data"]
            if len(answers) == len(entries) and all(isinstance(answer, dict) for answer in answers):
                return list(answers)
        except (ValueError, KeyError, TypeError):
            pass
        raise _CallFailed("broken", _NOT_LATCHKEY)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        started_at = time.monotonic()
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        connection = kept or self._new_connection()
        try:
            try:
                return self._exchange(connection, body, headers)
            except ConnectionError:
                # Repeated only if the connection was closed already: otherwise uses may have been counted.
                if kept is None or time.monotonic() - started_at > _QUICK_FAILURE_SECONDS:
                    raise
                connection.close()
                self.close()
                connection = self._new_connection()
                return self._exchange(connection, body, headers)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _CallFailed("broken", _reason(error)) from None

    def _new_connection(self) -> http.client.HTTPConnection:
        try:
            return self.connect(self._timeout)
        except (OSError, http.client.HTTPException) as error:
            raise _CallFailed("unavailable", _reason(error)) from None

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """Raises ConnectionError only if no reply had begun."""
        sock, deadline = connection.sock, time.monotonic() + self._timeout
        sock.settimeout(self._timeout)
        connection.request("POST", f"{self._path}/v1/verify/batch", body, headers)
        response = connection.getresponse()
        text = b""
        try:
            while True:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                part = response.read1(65_536)
                text += part
                if len(text) > _LONGEST_REPLY:
                    raise http.client.HTTPException("the reply is too long")
                if not part:
                    break
            # Before Python 3.12, the connection can be used again only after this.
            response.read()
        except ConnectionError as error:
            raise http.client.HTTPException(_text_of(error)) from None
        finally:
            response.close()
        if connection.sock is not None:
            with self._lock:
                self._idle.append(connection)
        return response.status, text


def _reason(error: Exception) -> str:
    """For a log."""
    if isinstance(error, _CallFailed):
        return str(error)
    if isinstance(error, socket.timeout):
        return "Latchkey did not answer in time"
    return f"Latchkey did not answer: {_text_of(error)}"


def _refusal(status: int, text: bytes) -> _CallFailed:
    """Describes a reply other than 200."""
    why, remedy = "unavailable", ""
    if status in (401, 403):
        why, remedy = "refused", " token must be a verifier's token with the scope read."
    try:
        problem = json.loads(text)
        return _CallFailed(why, f"Latchkey answered {status} {problem['title']}: {problem['detail']}{remedy}")
    except (ValueError, KeyError, TypeError):
        return _CallFailed(why, f"The reply with status {status} is not from Latchkey. Check url.")


@dataclass(frozen=True)
class _Question:
    key: str = field(repr=False)
    permission: str
    ip: str | None
    cost: int
    scopes: tuple[str, ...]
    digest: bytes

    def grant(self, verdict: Verdict) -> str:
        """The permission and address for which a verdict is valid."""
        return f"{self.permission} {self.ip or ''}" if verdict.depends_on_ip else self.permission

    def entry(self, **more: int) -> dict[str, Any]:
        scopes = {"scopes": list(self.scopes)} if self.scopes else {}
        return {"key": self.key, "permission": self.permission, "ip": self.ip, "cost": self.cost, **scopes, **more}


@dataclass(eq=False)
class _Known:
    """A cached key, by its SHA-256, and its limit with the uses that were allowed here since.

    expires_at: by Latchkey's clock.
    grants: when each permission (and address, if it matters) was last confirmed.
    pending: the cost of the uses that Latchkey may not have counted yet.
    uses, cost: of the next report.
    question: the latest one. It has the key's text, so it is kept only until the report.
    """

    digest: bytes
    facts: Verdict
    expires_at: float = 0
    grants: dict[str, float] = field(default_factory=dict)
    limit: RateLimit | None = None
    remaining: int = 0
    reset_at: float = 0
    pending: int = 0
    uses: int = 0
    cost: int = 0
    question: _Question | None = None

    def learn_limit(self, state: RateLimit | None, now: float) -> None:
        """Within a window the remaining number only decreases, because replies may overtake each other."""
        if state is None:
            return
        reset_at = now + state.reset_seconds
        same = replace(state, remaining=0, reset_seconds=0)
        # Latchkey sends whole seconds.
        if same == self.limit and abs(self.reset_at - reset_at) <= 1:
            self.remaining = min(self.remaining, state.remaining)
        else:
            self.limit, self.remaining, self.reset_at = same, state.remaining, reset_at

    def has_credit(self, cost: int, now: float) -> bool:
        """Whether this cost may be allowed without a call. After the window, the state of the next is not known."""
        if cost == 0 or self.limit is None:
            return True
        return now < self.reset_at and self.pending + cost <= self.remaining / _CREDIT_SHARE

    def has_rest(self, cost: int, now: float) -> bool:
        """The same in an outage: all that remains may be used, and the next window begins here."""
        if self.limit is None:
            return True
        if cost > self.limit.limit:
            raise CostExceedsLimit(f"A use of cost {cost} exceeds a whole window of the API key's limit.")
        if now >= self.reset_at:
            self.remaining = self.limit.limit + self.pending
            self.reset_at = now + self.limit.window_seconds
        return self.pending + cost <= self.remaining

    def assume_counted(self, cost: int) -> None:
        self.pending -= cost
        self.remaining = max(0, self.remaining - cost)

    def verdict(self, code: str, now: float) -> Verdict:
        limit = self.limit and replace(
            self.limit,
            remaining=max(0, self.remaining - self.pending),
            reset_seconds=max(1, math.ceil(self.reset_at - now)),
        )
        # A request may change its scopes and metadata.
        scopes, metadata = copy.deepcopy((self.facts.scopes, self.facts.metadata))
        is_valid = code == "valid"
        return replace(self.facts, valid=is_valid, code=code, scopes=scopes, metadata=metadata, rate_limit=limit)


class _Cache:
    """The cached keys, by their SHA-256 and by the ids on which their verdicts depend."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[bytes, _Known] = OrderedDict()
        self._dependents: dict[str, set[bytes]] = {}

    def get(self, digest: bytes) -> _Known | None:
        if digest in self._keys:
            self._keys.move_to_end(digest)
        return self._keys.get(digest)

    def has(self, known: _Known) -> bool:
        return self._keys.get(known.digest) is known

    def learn(self, question: _Question, verdict: Verdict, asked_at: float) -> _Known:
        known = self.get(question.digest)
        if known is None:
            known = self._keys[question.digest] = _Known(question.digest, verdict)
            for one in _ids_of(verdict):
                self._dependents.setdefault(one, set()).add(question.digest)
            if len(self._keys) > self._capacity:
                self.forget(next(iter(self._keys)))
        known.facts = verdict
        known.expires_at = float("inf") if verdict.expires_at is None else _timestamp(verdict.expires_at)
        known.grants[question.grant(verdict)] = asked_at
        if len(known.grants) > _MOST_GRANTS:
            del known.grants[next(iter(known.grants))]
        return known

    def forget(self, digest: bytes) -> None:
        known = self._keys.pop(digest, None)
        for one in _ids_of(known.facts) if known else ():
            self._dependents[one].discard(digest)
            if not self._dependents[one]:
                del self._dependents[one]

    def forget_dependents(self, ids: Iterable[str]) -> None:
        for one in ids:
            for digest in list(self._dependents.get(one, ())):
                self.forget(digest)

    def clear(self) -> None:
        self._keys.clear()
        self._dependents.clear()


def _ids_of(verdict: Verdict) -> list[str]:
    return [one for one in (verdict.key_id, verdict.partner_id, verdict.organization_id) if one is not None]


class _ChangeStream:
    """Follows `GET /v1/changes` in a thread of its own until it is closed.

    Events are applied under the client's lock: a reset, and the heartbeat that makes the cache usable again, must not
    be separated.
    """

    def __init__(self, service: _Service, client: LatchkeyClient) -> None:
        self._service, self._client, self._lock = service, client, client._lock
        self._closing = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._is_connected = self._was_alive = False
        # All changes before this time have arrived.
        self._complete_until = float("-inf")
        self._clock_offset = time.time() - time.monotonic()
        self._opened_at = 0.0
        self._late_heartbeats = self._failures = 0

    def is_alive(self, now: float) -> bool:
        """Whether every change older than 5 s has arrived. Only then may cached verdicts be used."""
        return self._is_connected and now - self._complete_until < _SILENCE_ALLOWED_SECONDS

    def server_time(self, now: float) -> float:
        """Latchkey's time, by which keys expire, as far as it is known."""
        return now + self._clock_offset

    def run(self) -> None:
        shortest, longest = _RECONNECT_SECONDS
        while not self._closing.is_set():
            try:
                self._follow()
            except Exception as error:  # Whatever a server sends, the thread goes on.
                with self._lock:
                    self._is_connected = False
                self._report_state(_reason(error))
            delay = min(longest, shortest * 2**self._failures)
            self._failures = min(10, self._failures + 1)
            self._closing.wait(delay * random.uniform(0.5, 1))

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            self._is_connected = self._was_alive = False
        try:
            if self._connection is not None and self._connection.sock is not None:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass  # The thread has closed it.

    def _follow(self) -> None:
        """Follows one connection. A connection can be dead without an error, so each read has a time limit."""
        self._opened_at, self._late_heartbeats = time.monotonic(), 0
        try:
            self._connection = self._service.connect(_SILENCE_ALLOWED_SECONDS)
            try:
                response = self._service.open_changes(self._connection)
            except BaseException:
                self._connection.close()
                raise
        except Exception as error:
            self._client._notice_trouble(error)
            raise
        try:
            self._read(response)
        finally:
            response.close()
            self._connection.close()

    def _read(self, response: http.client.HTTPResponse) -> None:
        event = data = ""
        while not self._closing.is_set():
            line = response.readline(_LONGEST_EVENT)
            if not line.endswith(b"\n"):
                why = "the stream was closed" if len(line) < _LONGEST_EVENT else "an event is too long"
                raise _CallFailed("unavailable", why)
            name, _, value = line.decode().strip().partition(":")
            if name == "event":
                event = value.strip()
            elif name == "data":  # Latchkey's events have one line of data.
                data = value
            elif name == "" and data:
                with self._lock:
                    self._handle(event, json.loads(data))
                event = data = ""
            self._report_state(f"no heartbeat for {_SILENCE_ALLOWED_SECONDS:g} s")

    def _handle(self, event: str, data: dict[str, Any]) -> None:
        if event == "change":
            self._client._changed(data["ids"])
        elif event == "heartbeat":
            self._beat(data)
        elif event in ("reset", "hello"):
            self._client._changed(None)
        elif event == "down":
            self._is_connected = False
        elif event == "end":
            raise _CallFailed("unavailable", f"Latchkey ended the stream: {data.get('reason')}")

    def _beat(self, data: dict[str, Any]) -> None:
        """A heartbeat describes the time at which it was written, and may have been on its way for long."""
        now = time.monotonic()
        written_at = min(now, self._opened_at + data["openMs"] / 1_000)
        is_late = now - written_at > _SILENCE_ALLOWED_SECONDS / 2
        self._late_heartbeats = self._late_heartbeats + 1 if is_late else 0
        if self._late_heartbeats >= _LATE_HEARTBEATS_ALLOWED:
            raise _CallFailed("unavailable", "changes from Latchkey arrive late")
        if not self.is_alive(now):
            # Verdicts from before the stream was connected may be outdated.
            self._client._changed(None)
        if not is_late:
            self._failures = 0
        self._is_connected = True
        self._complete_until = max(self._complete_until, written_at - data["behindMs"] / 1_000)
        self._clock_offset = _timestamp(data["at"]) - written_at

    def _report_state(self, cause: str) -> None:
        with self._lock:
            is_alive = self.is_alive(time.monotonic())
            if is_alive == self._was_alive:
                return
            self._was_alive = is_alive
        self._client._state_changed(is_alive, cause)


class LatchkeyClient:
    """Verifies keys with Latchkey, and from memory while changes are followed.

    url: the URL of Latchkey, such as `https://latchkey.internal:8080`.
    token: the access token of a verifier with the scope `read`.
    cache_seconds: how long a valid verdict may be used without being confirmed by Latchkey; 0: not at all.
    cache_size: the maximum number of cached keys; the least recently used one is dropped.
    timeout_seconds: how long a verification may wait for a connection, for connecting, and for the reply.
    report_every_seconds: how often uses that were allowed from memory are reported to Latchkey.
    on_event: called with a name and a dict, for metrics; see README.md.
    ssl_context: for a private certificate authority.

    Raises ValueError for invalid options. Nothing is sent before the first verification.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        cache_seconds: float = 30,
        cache_size: int = 10_000,
        timeout_seconds: float = 2,
        report_every_seconds: float = 0.25,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or set("@?#") & set(url):
            raise ValueError("url must be like https://latchkey.internal:8080")
        # An environment variable that is not set is the usual mistake; it would make every request a 503.
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ValueError("token must be the access token of a verifier, but is not set or has another form")
        if not cache_seconds >= 0:
            raise ValueError(f"cache_seconds must be 0 or more, but is {cache_seconds}")
        if not isinstance(cache_size, int) or cache_size < 1:
            raise ValueError(f"cache_size must be a whole number from 1, but is {cache_size}")
        for name, value in (("timeout_seconds", timeout_seconds), ("report_every_seconds", report_every_seconds)):
            if not 0 < value <= threading.TIMEOUT_MAX:
                raise ValueError(f"{name} must be more than 0, but is {value}")
        self._url, self._token, self._ssl_context = url, token, ssl_context
        self._cache_seconds, self._cache_size = cache_seconds, cache_size
        self._timeout, self._report_every = timeout_seconds, report_every_seconds
        self._on_event = on_event
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        """Creates everything that belongs to one process. The threads start with the first verification."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._is_started = False
        self._service = _Service(self._url, self._token, self._timeout, self._ssl_context)
        self._stream = _ChangeStream(self._service, self)
        self._cache = _Cache(self._cache_size)
        # A verdict that was asked for before the last change is not cached.
        self._changes = 0
        self._unreported: deque[_Known] = deque()
        # Of the last call; None if it was answered.
        self._failure: _CallFailed | None = None
        self._probe: threading.Event | None = None
        self._troubles: dict[str, float] = {}
        self._waiting = 0
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"LatchkeyClient({self._url!r})"

    def __enter__(self) -> LatchkeyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(
        self, key: str, permission: str, *, ip: str | None = None, scopes: Iterable[str] = (), cost: int = 1
    ) -> Verdict:
        """Verifies a key for `read` or `write`.

        key: exactly as the client sent it.
        ip: the client's address; without it, a key with allowedIps is rejected.
        scopes: all of them must be on the key.
        cost: 0 to 1,000, how much this use counts; 0 verifies without counting.
        Raises LatchkeyUnavailable or CostExceedsLimit.
        """
        verdict, question = self._verify_at_once(key, permission, ip, _scopes_in(scopes), cost)
        return verdict or self._ask(question)

    async def verify_async(
        self, key: str, permission: str, *, ip: str | None = None, scopes: Iterable[str] = (), cost: int = 1
    ) -> Verdict:
        """The same for asyncio: at once if the key is cached, otherwise in one of a few threads."""
        needed = _scopes_in(scopes)
        verdict, question = self._verify_at_once(key, permission, ip, needed, cost)
        if verdict is not None:
            return verdict
        if self._waiting >= _MOST_WAITING:
            raise self._unavailable("Too many questions wait for an answer.")
        with self._lock:
            self._waiting += 1
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(_CONNECTIONS, "latchkey-verify")
        enqueued_at = time.monotonic()

        def verify_in_thread() -> Verdict:
            if time.monotonic() - enqueued_at > self._timeout:
                raise self._unavailable("Latchkey was busy with other questions for too long.")
            return self.verify(key, permission, ip=ip, scopes=needed, cost=cost)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, verify_in_thread)
        finally:
            with self._lock:
                self._waiting -= 1

    def is_live(self) -> bool:
        """Whether cached verdicts may be used: the change stream is connected."""
        with self._lock:
            return self._stream.is_alive(time.monotonic())

    def close(self) -> None:
        """Reports the remaining uses and ends the change stream. Later verifications raise LatchkeyUnavailable."""
        self._closing.set()
        self._flush_reports()
        self._stream.close()
        self._service.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def _verify_at_once(
        self, key: str, permission: str, ip: str | None, scopes: tuple[str, ...], cost: int
    ) -> tuple[Verdict | None, _Question]:
        if self._closing.is_set():
            raise LatchkeyUnavailable("The client is closed.")
        if permission not in ("read", "write"):
            raise ValueError("permission must be read or write")
        if not isinstance(cost, int) or not 0 <= cost <= _GREATEST_COST:
            raise ValueError(f"cost must be a whole number from 0 to {_GREATEST_COST}")
        address = ip if ip and len(ip) <= _LONGEST_ADDRESS else None
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        question = _Question(key, permission, address, cost, scopes, digest)
        # Not sent: otherwise a client could fill the connections with long texts.
        if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key):
            verdict: Verdict | None = Verdict(False, "malformed")
        else:
            with self._lock:
                self._start()
                verdict = self._from_memory(question)
        if verdict is not None:
            self._emit("verified", code=verdict.code, source="memory")
        return verdict, question

    def _start(self) -> None:
        """Starts the threads. The lock is held."""
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._stream.run, name="latchkey-changes", daemon=True).start()
            threading.Thread(target=self._report, name="latchkey-reports", daemon=True).start()

    def _from_memory(self, question: _Question, is_outage: bool = False) -> Verdict | None:
        """The cached verdict, if it may be used. The lock is held."""
        now = time.monotonic()
        known = self._cache.get(question.digest)
        if known is None or not (is_outage or self._stream.is_alive(now)) or not self._is_granted(known, question, now):
            return None
        if self._has_expired(known, now):
            return known.verdict("expired", now) if is_outage else None
        if not set(question.scopes) <= set(known.facts.scopes or ()):
            # Otherwise Latchkey is asked, which counts the rejected use.
            return known.verdict("insufficient_scope", now) if is_outage else None
        if is_outage and not known.has_rest(question.cost, now):
            return known.verdict("rate_limited", now)
        if not is_outage and not known.has_credit(question.cost, now):
            return None
        if question.cost > 0:
            known.uses += 1
            known.cost += question.cost
            known.pending += question.cost
            if known.question is None:
                self._unreported.append(known)
            known.question = question
        return known.verdict("valid", now)

    def _is_granted(self, known: _Known, question: _Question, now: float) -> bool:
        confirmed_at = known.grants.get(question.grant(known.facts))
        return confirmed_at is not None and now - confirmed_at < self._cache_seconds

    def _has_expired(self, known: _Known, now: float) -> bool:
        return known.expires_at <= self._stream.server_time(now)

    def _ask(self, question: _Question) -> Verdict:
        """After a failed call, only one call at a time probes Latchkey, and only unknown keys wait for it.

        Uses of known keys are reported soon, which probes Latchkey as well.
        """
        probe = own_probe = None
        if self._failure is not None:
            with self._lock:
                stale = self._from_memory(question, is_outage=True)
                probe = self._probe
                if stale is None and probe is None:
                    self._probe = own_probe = threading.Event()
            if stale is not None:
                return self._answered(stale, "outage")
        if probe is not None:
            probe.wait(3 * self._timeout)
            if self._failure is not None:
                raise self._unavailable(str(self._failure))
        try:
            return self._answered(self._look_up(question), "latchkey")
        except _CallFailed as error:
            with self._lock:
                stale = self._from_memory(question, is_outage=True)
            if stale is None:
                raise self._unavailable(str(error)) from None
            return self._answered(stale, "outage")
        finally:
            if own_probe is not None:
                self._probe = None
                own_probe.set()

    def _answered(self, verdict: Verdict, source: str) -> Verdict:
        self._emit("verified", code=verdict.code, source=source)
        return verdict

    def _unavailable(self, reason: str) -> LatchkeyUnavailable:
        self._emit("unavailable", reason=reason)
        return LatchkeyUnavailable(reason)

    def _look_up(self, question: _Question) -> Verdict:
        """Raises _CallFailed or CostExceedsLimit."""
        with self._lock:
            now = time.monotonic()
            is_alive, changes = self._stream.is_alive(now), self._changes
            known = self._cache.get(question.digest)
            if known and not (
                is_alive and self._is_granted(known, question, now) and not self._has_expired(known, now)
            ):
                known = None
            # The uses that were allowed before have to be counted first.
            reports = self._take_reports() if known else []
        # A verdict that is cached is read from the database: the replica that answers may not know a change that this
        # stream has already delivered.
        fresh = known is None and is_alive and self._cache_seconds > 0
        answer = self._call(reports, [question.entry()], fresh)[0]
        verdict = _verdict_in(answer)
        with self._lock:
            if known is not None:
                # The key is valid as far as is known, and this call is about its limit.
                self._confirm(known, question, verdict, now)
            elif changes == self._changes:
                if verdict.code in ("valid", "rate_limited"):
                    learned = self._cache.learn(question, _verdict_in(copy.deepcopy(answer)), now)
                    learned.learn_limit(verdict.rate_limit, time.monotonic())
                elif verdict.code not in _ABOUT_THIS_USE:
                    self._cache.forget(question.digest)
        return verdict

    def _confirm(self, known: _Known, question: _Question, verdict: Verdict, asked_at: float) -> None:
        """The replica that answered may not know a recent change, so its verdict adds nothing."""
        known.learn_limit(verdict.rate_limit, time.monotonic())
        if not self._cache.has(known):
            return
        grant = question.grant(known.facts)
        if verdict.code not in ("valid", "rate_limited", "insufficient_scope"):
            self._cache.forget(known.digest)
        elif verdict.code != "insufficient_scope" and grant in known.grants:
            known.grants[grant] = asked_at

    def _call(self, reports: list[_Report], questions: list[dict[str, Any]], fresh: bool) -> list[dict[str, Any]]:
        """Sends reports and questions in one request. Returns the answers to the questions. Raises _CallFailed."""
        sent_at = time.monotonic()
        entries = [report.question.entry(uses=report.uses, cost=report.cost) for report in reports]
        try:
            answers = self._service.verify_batch(entries + questions, fresh)
        except _CallFailed as error:
            with self._lock:
                for report in reports:
                    report.fail(may_be_counted=error.why == "broken")
                if error.why == "refused":
                    # A backend whose token is rejected must not accept any request.
                    self._cache.clear()
                if error.why != "busy":
                    self._failure = error
            self._notice_trouble(error)
            raise
        with self._lock:
            self._failure = None
            for report, answer in zip(reports, answers):
                if "valid" in answer:
                    report.known.pending -= report.cost
                    self._confirm(report.known, report.question, _verdict_in(answer), sent_at)
                else:
                    # An entry that is invalid would be rejected each time.
                    report.fail(may_be_counted=answer.get("status", 500) < 500)
        return answers[len(reports) :]

    def _take_reports(self) -> list[_Report]:
        reports: list[_Report] = []
        while self._unreported and len(reports) < _REPORTS_IN_REQUEST:
            known = self._unreported.popleft()
            if known.question is not None:
                reports.append(_Report(known, known.question, known.uses, known.cost))
            known.question, known.uses, known.cost = None, 0, 0
        return reports

    def _report(self) -> None:
        while not self._closing.wait(self._report_every):
            try:
                self._flush_reports()
            except Exception:
                _log.exception("Uses of API keys could not be reported.")

    def _flush_reports(self) -> None:
        while True:
            with self._lock:
                reports = self._take_reports()
            try:
                if reports:
                    self._call(reports, [], False)
            except _CallFailed:
                return
            if len(reports) < _REPORTS_IN_REQUEST:
                return

    def _changed(self, ids: list[str] | None) -> None:
        """Called with the lock held. None: changes may have been missed."""
        self._changes += 1
        if ids is None:
            self._cache.clear()
        else:
            self._cache.forget_dependents(ids)

    def _state_changed(self, is_live: bool, cause: str) -> None:
        if is_live:
            _log.info("API keys are verified from memory.")
            self._emit("live")
        else:
            _log.warning("Changes of API keys do not arrive (%s), so Latchkey is called for each request.", cause)
            self._emit("not_live", reason=cause)

    def _notice_trouble(self, error: Exception) -> None:
        """Logs an error at once, and then once a minute while it lasts."""
        message, now = _reason(error), time.monotonic()
        with self._lock:
            if self._closing.is_set() or now - self._troubles.get(message, float("-inf")) < _TROUBLE_EVERY_SECONDS:
                return
            if len(self._troubles) >= 50:
                self._troubles.clear()
            self._troubles[message] = now
        _log.error("API keys cannot be verified with Latchkey at %s: %s", self._url, message)
        self._emit("trouble", reason=message)

    def _emit(self, name: str, **detail: Any) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(name, detail)
        except Exception:
            _log.exception("on_event failed.")


@dataclass
class _Report:
    """Uses of one key that were allowed from memory."""

    known: _Known
    question: _Question
    uses: int
    cost: int

    def fail(self, may_be_counted: bool) -> None:
        """Uses that were not counted are reported with the key's next use."""
        if may_be_counted:
            self.known.assume_counted(self.cost)
        else:
            self.known.uses += self.uses
            self.known.cost += self.cost


_clients: weakref.WeakSet[LatchkeyClient] = weakref.WeakSet()


def _begin_after_fork() -> None:
    """A child shares neither threads nor connections with its parent."""
    for client in list(_clients):
        if not client._closing.is_set():
            client._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_after_fork)


@dataclass(frozen=True)
class ApiKey:
    """The key that allowed a request. `partner_id` is None for the organization's own keys."""

    id: str
    organization_id: str
    partner_id: str | None
    partner_external_id: str | None
    partner_email: str | None
    permission: str
    scopes: list[str]
    name: str | None
    metadata: dict[str, Any]
    expires_at: str | None
    rate_limit: RateLimit | None


@dataclass(eq=False)
class Denial(Exception):
    """Why a request is rejected, and the default reply. `on_denied` may change `status` and `headers`.

    code: `unauthorized`, `forbidden`, `rate_limited`, `unavailable` or `bad_request`.
    detail: for the client: what happened.
    verdict: Latchkey's; None if there is none. Not for the client.
    """

    status: int
    code: str
    detail: str
    headers: dict[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None


def _unauthorized(error: str, detail: str, verdict: Verdict | None = None) -> Denial:
    return Denial(401, "unauthorized", detail, _challenge(error, detail), verdict)


def _challenge(error: str, detail: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="api", error="{error}", error_description="{detail}"'}


def _denial_of(verdict: Verdict, scopes: tuple[str, ...]) -> Denial:
    """scopes: those that the request needs."""
    if verdict.code == "ip_not_allowed":
        return Denial(403, "forbidden", "The API key is not accepted from this address.", {}, verdict)
    if verdict.code == "insufficient_permission":
        detail = "The API key does not permit this."
        return Denial(403, "forbidden", detail, _challenge("insufficient_scope", detail), verdict)
    if verdict.code == "insufficient_scope":
        detail = "The API key lacks a scope that this request needs."
        headers = _challenge("insufficient_scope", detail)
        headers["WWW-Authenticate"] += f', scope="{" ".join(scopes)}"'
        return Denial(403, "forbidden", detail, headers, verdict)
    if verdict.code == "rate_limited":
        headers, limit = {"Retry-After": "1"}, verdict.rate_limit
        if limit is not None:
            headers = {
                "Retry-After": str(limit.reset_seconds),
                "RateLimit": f'"{limit.policy}";r={limit.remaining};t={limit.reset_seconds}',
                "RateLimit-Policy": f'"{limit.policy}";q={limit.limit};w={limit.window_seconds}',
            }
        return Denial(429, "rate_limited", "The API key has been used too often.", headers, verdict)
    # The same reply for all others, so that it does not reveal which keys exist.
    return _unauthorized("invalid_token", "The API key is not accepted.", verdict)


def _read_key(values: Callable[[str], list[str]], header: str | None) -> str:
    """The key in the headers of a request. A repeated header is joined with a comma, which no key contains."""
    sent = values(header or "X-API-Key")
    found = {", ".join(sent)} if sent else set()
    for authorization in [] if header else values("Authorization"):
        match = re.fullmatch(r"bearer +([^ ]+) *", authorization, re.IGNORECASE)
        if match is None:
            raise _unauthorized("invalid_request", "Authorization must be of the form: Bearer <token>.")
        found.add(match[1])
    if len(found) > 1:
        raise Denial(400, "bad_request", "The request has different credentials. Send one of them.")
    if not found:
        how = f"in {header}" if header else "as Authorization: Bearer <key> or in X-API-Key"
        headers = {"WWW-Authenticate": 'Bearer realm="api"'}
        raise Denial(401, "unauthorized", f"Send an API key {how}.", headers)
    return found.pop()


def _require_no_key_in_query(query: str) -> None:
    """RFC 6750 section 5.3: keys do not belong into URLs."""
    if _KEY_IN_QUERY.search(unquote_plus(query)):
        detail = "An API key in the query string is rejected, because URLs end up in logs and histories. "
        raise Denial(400, "bad_request", detail + "Send it in a header, and replace it.")


class _Middleware:
    """What WSGI and ASGI have in common. A request is an environ or a scope."""

    def __init__(
        self,
        app: Any,
        client: LatchkeyClient,
        *,
        permission: Callable[[Any], str | None] | None = None,
        scopes: Callable[[Any], Iterable[str]] | None = None,
        header: str | None = None,
        ip: Callable[[Any], str | None] | None = None,
        cost: Callable[[Any], int] | None = None,
        on_denied: Callable[[Denial, Any], bytes | None] | None = None,
    ) -> None:
        """Protects an application. The functions get the environ (WSGI) or the scope (ASGI).

        permission: returns `read`, `write`, or `none` for a request that needs no key. Default, also for None: `read`
            for GET, HEAD and OPTIONS, otherwise `write`.
        scopes: returns the scopes that must be on the key, all of them. Default: none.
        header: the header with the key, instead of `Authorization: Bearer …` and `X-API-Key`.
        ip: returns the client's address. Default: the address that connected, which may be a proxy's.
        cost: returns how much the request counts, 0 to 1,000. Default: 1.
        on_denied: returns the body of a rejection, or None for the default. The request stays rejected.
        """
        self._app, self._client, self._header, self._scopes = app, client, header, scopes
        self._permission, self._ip, self._cost, self._on_denied = permission, ip, cost, on_denied

    def _permission_of(self, request: Any, method: str) -> str:
        permission = (self._permission and self._permission(request)) or permission_for(method)
        if permission not in ("read", "write", "none"):
            raise ValueError(f"permission must return read, write or none, but returned {permission!r}")
        return permission

    def _question(self, request: Any, values: Callable[[str], list[str]], query: str, ip: str | None) -> dict[str, Any]:
        """The arguments of verify, without the permission."""
        _require_no_key_in_query(query)
        key = _read_key(values, self._header)
        cost = 1 if self._cost is None else self._cost(request)
        scopes = () if self._scopes is None else _scopes_in(self._scopes(request))
        return {"key": key, "ip": ip if self._ip is None else self._ip(request), "scopes": scopes, "cost": cost}

    @staticmethod
    def _admit(verdict: Verdict, scopes: tuple[str, ...]) -> ApiKey:
        if not verdict.valid:
            raise _denial_of(verdict, scopes)
        if None in (verdict.key_id, verdict.organization_id, verdict.permission, verdict.scopes, verdict.metadata):
            raise LatchkeyUnavailable("Latchkey returned a valid verdict without the id of the key.")
        members: dict[str, Any] = {**vars(verdict), "id": verdict.key_id}
        return ApiKey(**{one.name: members[one.name] for one in fields(ApiKey)})

    def _reply(self, error: Exception, request: Any, method: str) -> tuple[Denial, bytes]:
        """The denial with all of its headers, and the body."""
        if isinstance(error, Denial):
            denial = error
        elif isinstance(error, CostExceedsLimit):
            denial = Denial(403, "forbidden", "This request costs more than the API key's limit allows at all.")
        else:
            detail = "The API key cannot be verified at the moment."
            denial = Denial(503, "unavailable", detail, {"Retry-After": "1"})
        defaults = {"Cache-Control": "no-store", "Content-Type": "application/problem+json; charset=utf-8"}
        denial.headers = {**defaults, **denial.headers}
        body = self._on_denied(denial, request) if self._on_denied else None
        if body is None:
            title = HTTPStatus(denial.status).phrase
            problem = {"type": "about:blank", "title": title, "status": denial.status, "detail": denial.detail}
            body = json.dumps({**problem, "code": denial.code}).encode()
        denial.headers["Content-Length"] = str(len(body))
        return denial, b"" if method == "HEAD" else body


_REJECTIONS = (Denial, LatchkeyUnavailable, CostExceedsLimit)


class LatchkeyWSGI(_Middleware):
    """WSGI middleware: allows requests only with a valid key. `environ["latchkey.key"]` is its ApiKey.

    It is None for requests with the permission `none`.
    """

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        permission = self._permission_of(environ, method)
        environ["latchkey.key"] = None

        def values(name: str) -> list[str]:
            value = environ.get("HTTP_" + name.upper().replace("-", "_"))
            return [] if value is None else [value]

        try:
            if permission != "none":
                query, address = environ.get("QUERY_STRING", ""), environ.get("REMOTE_ADDR")
                question = self._question(environ, values, query, address)
                verdict = self._client.verify(permission=permission, **question)
                environ["latchkey.key"] = self._admit(verdict, question["scopes"])
        except _REJECTIONS as error:
            denial, body = self._reply(error, environ, method)
            start_response(f"{denial.status} {HTTPStatus(denial.status).phrase}", list(denial.headers.items()))
            return [body]
        return self._app(environ, start_response)  # type: ignore[no-any-return]


class LatchkeyASGI(_Middleware):
    """ASGI middleware for asyncio: allows requests only with a valid key. `scope["latchkey.key"]` is its ApiKey.

    It is None for requests with the permission `none`. A WebSocket is verified as a GET, when it is opened.
    """

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"requests of the type {scope['type']!r} cannot be verified")
        method = scope.get("method", "GET")
        permission = self._permission_of(scope, method)
        scope["latchkey.key"] = None

        def values(name: str) -> list[str]:
            wanted = name.lower().encode("latin-1")
            return [value.decode("latin-1") for given, value in scope["headers"] if given.lower() == wanted]

        try:
            if permission != "none":
                query, (address, _) = scope.get("query_string", b""), scope.get("client") or (None, 0)
                question = self._question(scope, values, query.decode("latin-1"), address)
                verdict = await self._client.verify_async(permission=permission, **question)
                scope["latchkey.key"] = self._admit(verdict, question["scopes"])
        except _REJECTIONS as error:
            denial, body = self._reply(error, scope, method)
            if scope["type"] == "websocket":
                await receive()
                # Before the WebSocket is accepted, the server answers this with 403.
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in denial.headers.items()]
            await send({"type": "http.response.start", "status": denial.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)
