"""A server that forks its workers after the client was used: `forked.py KEY`. test/python-client.test.ts starts it."""

import os
import sys
import time

from latchkey_client import LatchkeyClient

client = LatchkeyClient(os.environ["LATCHKEY_URL"], os.environ["LATCHKEY_TOKEN"])
key = sys.argv[1]


def wait_until_live():
    while not client.is_live():
        time.sleep(0.02)
    client.verify(key, "read")


client.verify(key, "read")
wait_until_live()
name = "parent"
for worker in ("worker 1", "worker 2"):
    if os.fork() == 0:
        name = worker
        assert not client.is_live()
        client.verify(key, "read")
        wait_until_live()
        break

print(f"{name}: {client.verify(key, 'read').code}", flush=True)
while client.verify(key, "read").valid:
    time.sleep(0.02)
print(f"{name}: {client.verify(key, 'read').code}", flush=True)
client.close()
if name == "parent":
    os.wait()
    os.wait()
