#!/usr/bin/env python3
"""Checks exports of Latchkey's history, and checkpoints, without Latchkey.

    curl -H "Authorization: Bearer $TOKEN" https://latchkey.example.com/v1/history/export > history.ndjson
    verify-history.py history.ndjson
    verify-history.py history.ndjson --checkpoint checkpoints --public-key history-key

Needs Python 3.8 or newer and nothing else; checkpoints need `openssl` 3 as well. Shares no code with Latchkey. What it
checks stands in docs/history.md. For each export it prints a line; exit code 0: all is well, 1: something is not,
2: wrong usage.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile

FIRST_PREVIOUS_HASH = bytes(32)
INSTALLATION = "installation"

LINE = re.compile(
    rb'(?P<event>\{.*?)(?:,"unreadable":true)?,"previousHash":"(?P<previous>[0-9a-f]{64})","hash":"(?P<hash>[0-9a-f]{64})"\}', re.DOTALL
)


class Bad(Exception):
    """Something that is not as it should be, in words for people."""


# --- Events ---------------------------------------------------------------------------------------------------------


def number_text(value):
    """A number as ECMAScript writes it (RFC 8785 section 3.2.2.3): the shortest digits that give the same double."""
    if value != value or value in (float("inf"), float("-inf")):
        raise Bad("it has a number that JSON cannot hold")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    # repr() gives the shortest digits too, only in another layout.
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    if fraction == "0":
        fraction = ""
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times ten to the power of `point`.
    point = len(whole) + int(exponent or "0") - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    power = point - 1
    tail = "." + digits[1:] if count > 1 else ""
    return sign + digits[0] + tail + "e" + ("+" if power > 0 else "-") + str(abs(power))


def canonical_text(value):
    """JSON by RFC 8785. Numbers must be floats, as `parse_event` reads them."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ",".join(canonical_text(item) for item in value) + "]"
    # Members are sorted by their UTF-16 code units, not by code points.
    names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(canonical_text(name) + ":" + canonical_text(value[name]) for name in names) + "}"


def refuse_constant(name):
    raise Bad("it has " + name + ", which is no JSON")


def parse_event(text):
    try:
        event = json.loads(
            text.decode("utf-8"), parse_int=float, parse_float=float, parse_constant=refuse_constant
        )
        if not isinstance(event, dict) or canonical_text(event).encode("utf-8") != text:
            raise Bad("the event's text is not canonical JSON (RFC 8785)")
    except (ValueError, RecursionError) as error:
        raise Bad("the event's text is not canonical JSON (RFC 8785)") from error
    return event


def chain_of(event):
    organization = event.get("organizationId")
    return INSTALLATION if organization is None else organization


MOST_FLAWS = 100


class Verdict:
    def __init__(self):
        self.chain = None
        # What comes before the first flaw.
        self.events = 0
        self.head = FIRST_PREVIOUS_HASH
        # Lists of first place, last place, and why; as many as are kept, and how many there are.
        self.flaws = []
        self.flaw_count = 0
        self.agreeing = 0

    def fail(self, first, last, why):
        if self.flaws and self.flaw_count == len(self.flaws):
            latest = self.flaws[-1]
            if latest[2] == why and latest[1] + 1 == first:
                latest[1] = last
                return latest
        flaw = [first, last, why]
        self.flaw_count += 1
        if len(self.flaws) < MOST_FLAWS:
            self.flaws.append(flaw)
        return flaw


class Walk:
    """Goes along a chain. After a flaw it continues from the hash that stands with the flawed event."""

    def __init__(self, verdict, chain, checkpoints):
        self.verdict = verdict
        verdict.chain = chain if isinstance(chain, str) else "unknown"
        self.ahead = sorted(checkpoints)
        self.next = 1
        # None where the event before is missing or unreadable.
        self.head = FIRST_PREVIOUS_HASH
        self.proven_to = 0
        self.contradicted = None
        self.compare()

    def compare(self):
        while self.ahead and self.ahead[0][0] < self.next:
            size, head = self.ahead.pop(0)
            if size != self.next - 1 or self.head is None:
                continue
            if head == self.head:
                self.verdict.agreeing += 1
                self.proven_to = size
                self.contradicted = None
            elif self.contradicted is None:
                self.contradicted = self.verdict.fail(
                    min(self.proven_to + 1, max(size, 1)),
                    max(size, 1),
                    "the events up to %d differ from a signed checkpoint: the chain was rewritten, or continued from an "
                    "older backup" % size,
                )
            else:
                self.contradicted[1] = size

    def take(self, link):
        """A link is its event, text, previous hash and hash; None for a line that has no such parts."""
        why = None
        if link is None:
            why = "the line is not an exported event"
        else:
            event, text, previous, head = link
            number = event.get("sequence") if event is not None else None
            # What stands behind a hole is believed where its hash is that of its text.
            if type(number) is float and self.next < number <= 2**53 and number == int(number):
                if hashlib.sha256(previous + text).digest() == head:
                    number = int(number)
                    self.verdict.fail(
                        self.next, number - 1, "the event found here has sequence number %d" % number
                    )
                    self.next, self.head = number, None
            before = previous if self.head is None else self.head
            if event is None:
                why = "the event's text is not canonical JSON (RFC 8785)"
            elif type(event.get("sequence")) is not float or event["sequence"] != self.next:
                why = "another event stands in its place"
            elif chain_of(event) != self.verdict.chain:
                why = "the event belongs to another organization"
            elif previous != before:
                why = "the event does not follow the previous event"
            elif hashlib.sha256(before + text).digest() != head:
                why = "the event's text does not match its hash"
        if why is not None:
            self.verdict.fail(self.next, self.next, why)
        self.head = None if link is None else link[3]
        self.next += 1
        self.compare()
        if not self.verdict.flaws:
            self.verdict.events, self.verdict.head = self.next - 1, self.head

    def end(self):
        if self.ahead:
            size = self.ahead[-1][0]
            why = "a checkpoint has signed %d events: the tail was cut, or this is an older backup" % size
            self.verdict.fail(self.next, size, why)
        self.verdict.flaws.sort(key=lambda flaw: flaw[0])


def parse_line(line):
    match = LINE.fullmatch(line[:-1] if line.endswith(b"\n") else line)
    if match is None:
        return None
    text = match["event"] + b"}"
    try:
        event = parse_event(text)
    except Bad:
        event = None
    return event, text, bytes.fromhex(match["previous"].decode()), bytes.fromhex(match["hash"].decode())


def verify_export(lines, checkpoints_of, chain=None):
    """Walks through an export line by line and names all that is wrong, in constant memory."""
    verdict = Verdict()
    walk = Walk(verdict, chain, checkpoints_of(chain)) if chain is not None else None
    for line in lines:
        link = parse_line(line)
        if walk is None:
            event = link[0] if link is not None else None
            name = chain_of(event) if event is not None else "unknown"
            walk = Walk(verdict, name, checkpoints_of(name) if isinstance(name, str) else [])
        walk.take(link)
    if walk is not None:
        walk.end()
    return verdict


# --- Checkpoints ----------------------------------------------------------------------------------------------------

BODY = re.compile(
    r"latchkey/(installation|org_[0-7][0-9a-hjkmnp-tv-z]{25})\n(0|[1-9][0-9]{0,14})\n([A-Za-z0-9+/]{43}=)\n"
)
SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
VERIFIER_KEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")

ED25519 = b"\x01"
# What stands before the 32 bytes of an Ed25519 public key in DER (RFC 8410 section 4).
PUBLIC_KEY_PREFIX = bytes.fromhex("302a300506032b6570032100")


def decode_base64(text):
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def read_public_keys(path):
    """The keys of a file as /.well-known/latchkey-history-key gives it: by name and key id."""
    keys = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            match = VERIFIER_KEY.fullmatch(line.strip())
            if match is None:
                continue
            name, key_id, encoded = match.groups()
            content = decode_base64(encoded)
            expected = hashlib.sha256(name.encode() + b"\n" + content).hexdigest()[:8]
            if len(content) == 33 and content[:1] == ED25519 and expected == key_id:
                keys[(name, key_id)] = content[1:]
    if not keys:
        raise SystemExit("%s: has no line of the form latchkey+…+…" % path)
    return keys


def is_signed(body, key, signature):
    """Whether Ed25519 by `openssl` says so."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: os.path.join(folder, name) for name in ("key", "body", "signature")}
        for name, content in (("key", PUBLIC_KEY_PREFIX + key), ("body", body), ("signature", signature)):
            with open(paths[name], "wb") as file:
                file.write(content)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", paths["key"], "-rawin"]
        command += ["-in", paths["body"], "-sigfile", paths["signature"]]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def split_notes(path):
    """The notes of a file that has one after the other: body, blank line, signatures."""
    with open(path, "rb") as file:
        lines = [line.decode("utf-8", "replace") for line in file.read().split(b"\n")]
    notes, body, signatures, is_over = [], [], [], False
    for line in lines + [""]:
        if line.startswith("— "):
            signatures.append(line)
            continue
        torn = bool(body) and (is_over or len(body) != 3) if line == "" else is_over
        if signatures or torn:
            notes.append((body, signatures))
            body, signatures, is_over = [], [], False
        if line == "":
            is_over = bool(body)
        else:
            body.append(line)
    if body or signatures:
        notes.append((body, signatures))
    return notes


class Checkpoints:
    """What a file of checkpoints has signed about each chain. A signature is checked when it is needed."""

    def __init__(self, path, keys):
        self.keys = keys
        self.problems = []
        self.unchecked = {}
        self.checked = {}
        torn = 0
        for body, signatures in split_notes(path):
            text = "".join(line + "\n" for line in body)
            match = BODY.fullmatch(text)
            found = [SIGNATURE.fullmatch(line) for line in signatures]
            parsed = [(one[1], decode_base64(one[2])) for one in found if one is not None]
            parsed = [(name, content) for name, content in parsed if len(content) == 68]
            if match is None or not parsed or None in found:
                torn += 1
                continue
            chain, size, head = match.groups()
            note = (text, tuple(parsed), int(size), decode_base64(head))
            self.unchecked.setdefault(chain, {})[note] = None
        if torn:
            print("note %d texts in %s are no whole checkpoints, as a crash leaves them" % (torn, path))

    def chains(self):
        return list(self.unchecked)

    def of(self, chain):
        if chain not in self.checked:
            notes = self.unchecked.get(chain, {})
            self.checked[chain] = [(size, head) for text, signatures, size, head in notes if self.holds(text, signatures)]
        return self.checked[chain]

    def holds(self, text, signatures):
        is_known = False
        for name, content in signatures:
            key = self.keys.get((name, content[:4].hex()))
            if key is None:
                continue
            if not is_signed(text.encode("utf-8"), key, content[4:]):
                self.problems.append("a signature under %r is wrong" % text)
                return False
            is_known = True
        if not is_known:
            self.problems.append("%r is signed by no key that was given" % text)
        return is_known


# --- The command ----------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description="Checks exports of Latchkey's history, without Latchkey.")
    parser.add_argument("export", nargs="+", help="what GET /v1/history/export gave; - for standard input")
    parser.add_argument("--checkpoint", help="a checkpoint, or a file of several, to compare with")
    parser.add_argument("--public-key", help="what /.well-known/latchkey-history-key said when it could be trusted")
    parser.add_argument("--organization", help="whose history it should be: org_… or installation")
    given = parser.parse_args()
    if given.checkpoint is not None and given.public_key is None:
        parser.error("--checkpoint needs --public-key")
    checkpoints = None
    if given.checkpoint is not None:
        checkpoints = Checkpoints(given.checkpoint, read_public_keys(given.public_key))
    chain = given.organization
    if chain is None and checkpoints is not None and len(checkpoints.chains()) == 1:
        chain = checkpoints.chains()[0]
    is_good = True
    for path in given.export:
        is_good = report(path, checkpoints, chain) and is_good
    for problem in checkpoints.problems if checkpoints is not None else []:
        print("bad  checkpoint: " + problem)
        is_good = False
    return 0 if is_good else 1


def report(path, checkpoints, chain):
    checkpoints_of = checkpoints.of if checkpoints is not None else lambda name: []
    file = sys.stdin.buffer if path == "-" else open(path, "rb")
    with file:
        verdict = verify_export(file, checkpoints_of, chain)
    for index, (first, last, why) in enumerate(verdict.flaws):
        if index == 0:
            print("bad  %s: the first bad event is %d: %s" % (path, first, why))
            if last > first:
                print("bad       this goes up to event %d" % last)
        else:
            place = "event %d" % first if first == last else "events %d to %d" % (first, last)
            print("bad       %s: %s" % (place, why))
    if verdict.flaw_count > len(verdict.flaws):
        print("bad       and %d more, which are not listed" % (verdict.flaw_count - len(verdict.flaws)))
    if verdict.flaws:
        return False
    if verdict.chain is None:
        print("bad  %s: it is empty; --organization says whose history it should be" % path)
        return False
    compared = ""
    if checkpoints is not None:
        if verdict.agreeing == 0:
            print("bad  %s: there is no checkpoint of %s among those that were given" % (path, verdict.chain))
            return False
        compared = ", as %d checkpoints say" % verdict.agreeing
    words = (path, verdict.chain, verdict.events, verdict.head.hex(), compared)
    print("ok   %s: %s: %d events, the last with the hash %s%s" % words)
    return True


if __name__ == "__main__":
    sys.exit(main())
