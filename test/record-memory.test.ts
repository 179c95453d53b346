import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { createAttemptLimit } from '../src/crypto/attempt-limit.ts';
import { Secret } from '../src/crypto/secret.ts';
import { tokenHashOf } from '../src/crypto/tag.ts';
import type { KeyId } from '../src/domain/ids.ts';
import type { ApiKeyRecord } from '../src/verification/api-key-record.ts';
import { createSecretCheck } from '../src/verification/credentials.ts';
import { loadApiKeys } from '../src/verification/record-store.ts';
import { startService } from './support/app.ts';
import { t } from './support/tap.ts';

// What a known key costs in memory while others are asked for in between, as they are in a service that is in use.

const keysKnown = 400;
/** Node cuts buffers of less than half of this out of slabs of this size. */
const slabBytes = Buffer.poolSize;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** As other requests do: the slab of before is used up. */
function useUpSlab(): void {
  for (let bytes = 0; bytes < slabBytes; bytes += 32) Buffer.from('x'.repeat(32), 'latin1');
}

function bufferBytes(): number {
  collect();
  // What the first one found is given back in the background, and is by the time of the second.
  collect();
  return process.memoryUsage().arrayBuffers;
}

t.test('a known key keeps its own bytes, and not the slabs that they were cut from', async (t) => {
  const { admin, client, keyring, hasher, clock } = await startService(t);
  const { body: made } = await admin.post('/v1/keys', {});
  const check = createSecretCheck({
    crypto: { prefix: 'lk', keyring, hasher },
    attempts: createAttemptLimit(),
    retag: async () => undefined,
  });
  const token = new Secret(made.key);
  const loading = { keyring, onForged: (id: string) => t.fail(`${id} is authentic`) };
  const learn = async (): Promise<ApiKeyRecord> => {
    useUpSlab();
    const [record] = await loadApiKeys(client.db, clock, [made.id as KeyId], loading);
    if (record === undefined) throw new Error('the key is not there');
    useUpSlab();
    await check(record, token);
    return record;
  };
  // What the first times leave behind for good is not what is measured.
  for (let turn = 0; turn < 20; turn++) await learn();
  const beforeBytes = bufferBytes();
  const known: ApiKeyRecord[] = [];
  while (known.length < keysKnown) known.push(await learn());
  const bytesEach = (bufferBytes() - beforeBytes) / known.length;
  t.ok(bytesEach < slabBytes / 8, `each keeps ${Math.round(bytesEach)} bytes outside of the heap`);
  t.ok(
    known.every((record) => record.tokenHash === tokenHashOf(token)),
    'and each has the hash of its token',
  );
});
