#!/usr/bin/env python3
"""Finds Latchkey tokens in texts: right form and right checksum.

    find-tokens.py config.yml .env      prints file, line, kind and the last four characters of each token
    git log -p | find-tokens.py         the same for the standard input
    find-tokens.py --prefix acme FILE   for an installation with TOKEN_PREFIX=acme

Needs Python 3.8 or newer and nothing else; shares no code with Latchkey. The form stands in docs/leaks.md. Exit code 0: no
token was found, 1: some were, 2: wrong usage.
"""

import argparse
import re
import sys
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
KINDS = {"k": "API key", "a": "admin", "v": "verifier", "o": "operator", "c": "code of a claim"}


def checksum(body):
    """CRC-32 of all characters before it, as six base62 digits."""
    rest = zlib.crc32(body.encode("ascii"))
    digits = ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = ALPHABET[digit] + digits
    return digits


def tokens_in(text, prefix):
    form = re.compile(r"(?=(%s_([kavoc])_[0-7][0-9a-hjkmnp-tv-z]{25}_[0-9A-Za-z]{49}))" % re.escape(prefix))
    for match in form.finditer(text):
        token = match.group(1)
        if checksum(token[:-6]) == token[-6:]:
            yield match.group(2), token


def main():
    parser = argparse.ArgumentParser(description="Finds Latchkey tokens in texts.")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--prefix", default="lk", help="TOKEN_PREFIX of the installation")
    options = parser.parse_args()
    found = False
    for name in options.files or ["-"]:
        stream = sys.stdin if name == "-" else open(name, encoding="utf-8", errors="replace")
        for number, line in enumerate(stream, 1):
            for kind, token in tokens_in(line, options.prefix):
                found = True
                print("%s:%d: %s …%s" % (name, number, KINDS[kind], token[-4:]))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
