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

// Memory that a cached key costs while other requests run, as in a service in use.

const keysKnown = 400;
/** Node cuts buffers of less than half this size from slabs of this size. */
const slabBytes = Buffer.poolSize;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Uses up the current slab, as other requests do. */
function useUpSlab(): void {
  for (let bytes = 0; bytes < slabBytes; bytes += 32) Buffer.from('x'.repeat(32), 'latin1');
}

function bufferBytes(): number {
  collect();
  // Memory that the first collection found is freed in the background, before the second.
  collect();
  return process.memoryUsage().arrayBuffers;
}

t.test('a cached key keeps only its own bytes, not the slabs that they were cut from', async (t) => {
  const { admin, client, keyring, hasher, clock } = await startService(t);
  const { body: createdKey } = await admin.post('/v1/keys', {});
  const check = createSecretCheck({
    crypto: { prefix: 'lk', keyring, hasher },
    attempts: createAttemptLimit(),
    retag: async () => undefined,
  });
  const token = new Secret(createdKey.key);
  const loading = { keyring, onForged: (id: string) => t.fail(`${id} is authentic`) };
  const loadRecord = async (): Promise<ApiKeyRecord> => {
    useUpSlab();
    const [record] = await loadApiKeys(client.db, clock, [createdKey.id as KeyId], loading);
    if (record === undefined) throw new Error('the key is not there');
    useUpSlab();
    await check(record, token);
    return record;
  };
  // The first runs leave permanent memory behind, which is not measured.
  for (let round = 0; round < 20; round++) await loadRecord();
  const beforeBytes = bufferBytes();
  const known: ApiKeyRecord[] = [];
  while (known.length < keysKnown) known.push(await loadRecord());
  const bytesEach = (bufferBytes() - beforeBytes) / known.length;
  t.ok(bytesEach < slabBytes / 8, `each keeps ${Math.round(bytesEach)} bytes outside of the heap`);
  t.ok(
    known.every((record) => record.tokenHash === tokenHashOf(token)),
    'each record has the hash of its token',
  );
});
