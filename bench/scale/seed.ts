import { createHash, randomBytes } from 'node:crypto';
import pg from 'pg';
import { keyMac, tokenMac } from '../../src/credentials/record-mac.ts';
import type { Keyring } from '../../src/crypto/keyring.ts';
import type { Secret } from '../../src/crypto/secret.ts';
import { tagOf } from '../../src/crypto/tag.ts';
import { mintToken, type TokenKind } from '../../src/crypto/token.ts';
import type { Actor } from '../../src/domain/actor.ts';
import { canonicalJson } from '../../src/domain/canonical-json.ts';
import type { OrganizationId, PartnerId } from '../../src/domain/ids.ts';
import { type AccessTokenId, type Id, type IdKind, idSuffix, type KeyId, newId } from '../../src/domain/ids.ts';
import type { Role, TokenScope } from '../../src/domain/permissions.ts';
import { dayMs, hourMs } from '../../src/lib/durations.ts';
import { copyInto } from './copier.ts';
import { sharesOf, type WorldSize } from './sizes.ts';

/** An organization of the seeded world, with what a measurement asks for. */
export interface SeededOrganization {
  id: OrganizationId;
  adminToken: Secret;
  adminId: AccessTokenId;
  events: number;
  partnerId: PartnerId;
  partnerEmail: string;
  /** Its key is used all year, and revealed more often than others. */
  busyKeyId: KeyId;
  webhookId: Id<'webhook'>;
}

export interface World {
  biggest: SeededOrganization;
  small: SeededOrganization;
  /** Keys whose plaintext is known. */
  plaintexts: Secret[];
}

interface SeedOptions {
  superuserUrl: string;
  keyring: Keyring;
  argon2idHash: string;
  size: WorldSize;
  retentionMs: number;
  hourlyDays: number;
  log: (line: string) => void;
}

const yearMs = 365 * dayMs;
/** One in so many keys has a plaintext that is known, and is used all year. */
const sampledOneIn = 100;
const operator: Actor = { type: 'operator', id: newId('token'), name: 'Operator', email: null };
const zeroHash = Buffer.alloc(32);
/** The job for idle keys has to examine all of them, and finds none. */
const idleDays = 3_650;
const limits = { requests: 1_000, windowSeconds: 60 };

/**
 * Writes a world over one year with COPY, as the owner of the cluster: valid chains and MACs, and tags where the
 * plaintext is known. Indexes on history are made at the end, which takes a tenth of the time.
 */
export async function seedWorld(options: SeedOptions): Promise<World> {
  const { superuserUrl, keyring, argon2idHash, size, retentionMs, hourlyDays, log } = options;
  const clients = await Promise.all(Array.from({ length: 9 }, () => connectFast(superuserUrl)));
  const [db, ...others] = clients;
  if (db === undefined) throw new Error('There is no connection');
  try {
    const indexes = await dropHistoryIndexes(db);
    const nextClient = () => others.pop() ?? db;
    const copy = {
      organizations: copyInto(
        nextClient(),
        'organizations',
        'id, name, key_reveal, rate_limit_requests, rate_limit_window_seconds, idle_suspend_after_days, created_at, created_by',
      ),
      partners: copyInto(
        nextClient(),
        'partners',
        'id, organization_id, email, name, external_id, permissions, created_at, created_by',
      ),
      keys: copyInto(
        nextClient(),
        'api_keys',
        'id, organization_id, partner_id, permission, slot, name, folded_name, tag, tag_keyring_id, argon2id_hash, mac, mac_keyring_id, sealed, sealed_keyring_id, last_four, expires_at, allowed_ips, scopes, metadata, created_at, created_by, suspended_at, deleted_at, delete_reason, purged_at',
      ),
      tokens: copyInto(
        nextClient(),
        'access_tokens',
        'id, organization_id, role, scopes, name, email, tag, tag_keyring_id, argon2id_hash, mac, mac_keyring_id, last_four, created_at, created_by, creator_chain',
      ),
      heads: copyInto(nextClient(), 'history_heads', 'chain, sequence, hash, at'),
      events: copyInto(
        nextClient(),
        'history',
        'chain, sequence, id, at, action, actor_id, key_id, partner_id, canonical, previous_hash, hash',
      ),
      webhooks: copyInto(
        nextClient(),
        'webhook_endpoints',
        'id, organization_id, url, events, sealed, sealed_keyring_id, created_at, created_by',
      ),
      deliveries: copyInto(
        nextClient(),
        'webhook_deliveries',
        'id, endpoint_id, sequence, action, mac, mac_keyring_id, status, attempts, failures, due_at, created_at, finished_at',
      ),
    };
    const endMs = Date.now() - 60_000;
    const startMs = endMs - yearMs;
    const deletedUntilMs = endMs - retentionMs - hourMs;
    const plaintexts: Secret[] = [];
    const partnerShares = sharesOf(size.partners, size.organizations);
    const eventShares = sharesOf(size.events, size.organizations);
    const keysPerPartner = Math.round(size.keys / size.partners);
    const entry = keyring.primary;
    const seeded: SeededOrganization[] = [];
    let keyNumber = 0;
    let writtenEvents = 0;

    for (const [place, events] of eventShares.entries()) {
      const id = nextId('org');
      const partners = partnerShares[place] ?? 1;
      const chain = chainWriter(id, startMs, yearMs / (events + 1));
      const created = chain.next();
      await copy.organizations.add(
        id,
        `Organization ${place}`,
        'allowed',
        limits.requests,
        limits.windowSeconds,
        idleDays,
        created,
        actorText(operator),
      );
      await add(
        chain.event('organization.created', operator, null, null, {
          name: `Organization ${place}`,
          keyReveal: 'allowed',
          rateLimit: limits,
          leakResponse: 'notify',
          selfService: false,
          maxKeyLifetimeSeconds: null,
          defaultKeyLifetimeSeconds: null,
          idleSuspendAfterDays: idleDays,
        }),
      );

      const admins: Actor[] = [];
      let adminToken: Secret | undefined;
      const tokenCount = 2 + Math.ceil(partners / 100);
      for (let index = 0; index < tokenCount; index++) {
        const role: Role = index % 3 === 1 ? 'verifier' : 'admin';
        const tokenId = nextId('token');
        const token = mint(role === 'admin' ? 'a' : 'v', tokenId);
        if (index === 0) adminToken = token;
        const at = chain.next();
        const facts = {
          role,
          name: `Token ${index}`,
          email: role === 'admin' ? `admin-${index}@organization-${place}.example` : null,
          scopes: (role === 'admin' ? ['read', 'write'] : ['read']) as TokenScope[],
          expiresAt: null,
        };
        const row = {
          id: tokenId,
          organization_id: id,
          role,
          scopes: facts.scopes,
          name: facts.name,
          email: facts.email,
          creator_chain: [operator],
          expires_at: null,
          deleted_at: null,
          tag: tagOf(entry, token),
          tag_keyring_id: entry.id,
          argon2id_hash: argon2idHash,
        };
        const mac = tokenMac(keyring, row);
        await copy.tokens.add(
          tokenId,
          id,
          role,
          facts.scopes,
          facts.name,
          facts.email,
          row.tag,
          entry.id,
          argon2idHash,
          mac.mac,
          entry.id,
          'seed',
          at,
          actorText(operator),
          canonicalJson([operator]),
        );
        await add(chain.event('access_token.created', operator, null, null, { accessTokenId: tokenId, ...facts }));
        if (role === 'admin') admins.push({ type: 'admin', id: tokenId, name: facts.name, email: facts.email });
      }
      const firstAdmin = admins[0] ?? operator;
      const keys: Array<{ id: KeyId; partnerId: PartnerId }> = [];
      let firstPartner: { id: PartnerId; email: string } | undefined;
      const fillersPerPartner = (events - tokenCount - 1) / partners;
      for (let index = 0; index < partners; index++) {
        const partnerId = nextId('partner');
        const email = `partner-${index}@organization-${place}.example`;
        firstPartner ??= { id: partnerId, email };
        const admin = admins[index % admins.length] ?? operator;
        const partnerFacts = {
          email,
          name: `Partner ${index}`,
          externalId: `external-${index}`,
          metadata: {},
          permissions: ['read', 'write'],
          rateLimit: null,
        };
        await copy.partners.add(
          partnerId,
          id,
          email,
          partnerFacts.name,
          partnerFacts.externalId,
          partnerFacts.permissions,
          chain.next(),
          actorText(admin),
        );
        await add(chain.event('partner.created', admin, null, partnerId, partnerFacts));
        for (let number = 0; number < keysPerPartner; number++) await addKey(partnerId, number, admin);
        const due = Math.round((index + 1) * fillersPerPartner) + tokenCount + 1;
        while (chain.length() < due) await addFiller();
      }

      async function addKey(partnerId: PartnerId, number: number, admin: Actor): Promise<void> {
        const keyId = nextId('key');
        keyNumber += 1;
        const isSampled = keyNumber % sampledOneIn === 1;
        // Two live keys in the row for reading, one in the row for writing; the others are deleted.
        const permission = number === 1 ? 'write' : 'read';
        const slot = number === 2 ? 2 : 1;
        const isDeleted = number > 2;
        const token = isSampled ? mint('k', keyId) : undefined;
        if (token !== undefined && !isDeleted) plaintexts.push(token);
        const tag = token === undefined ? randomBytes(32) : tagOf(entry, token);
        const expiresMs =
          keyNumber % 10 === 5 ? endMs - 100 * dayMs + (keyNumber % 365) * dayMs + (keyNumber % 86_400_000) : null;
        const scopes = keyNumber % 20 === 1 ? ['orders:read'] : [];
        const expiresAt = expiresMs === null ? null : new Date(expiresMs);
        const { mac } = keyMac(keyring, {
          id: keyId,
          organization_id: id,
          partner_id: partnerId,
          permission,
          origin: 'created',
          expires_at: expiresAt,
          allowed_ips: [],
          scopes,
          rate_limit_requests: null,
          rate_limit_window_seconds: null,
          limit_bucket_id: null,
          delete_reason: isDeleted ? 'rotated' : null,
          tag,
          tag_keyring_id: entry.id,
          argon2id_hash: argon2idHash,
        });
        const at = chain.next();
        const facts = {
          permission,
          name: `Key ${number}`,
          expiresAt: expiresAt?.toISOString() ?? null,
          allowedIps: [],
          scopes,
          metadata: { environment: 'seeded', team: `team-${keyNumber % 100}` },
          replacesKeyId: null,
          rateLimit: null,
        };
        await add(chain.event('key.created', admin, keyId, partnerId, facts));
        keys.push({ id: keyId, partnerId });
        const isSuspended = !isDeleted && keyNumber % 50 === 7;
        let suspendedAt: string | null = null;
        let deletedAt: string | null = null;
        let purgedAt: string | null = null;
        if (isSuspended) {
          suspendedAt = chain.next();
          await add(chain.event('key.suspended', admin, keyId, partnerId, { suspendedAt, reason: null }));
        }
        if (isDeleted) {
          deletedAt = chain.next();
          await add(chain.event('key.deleted', admin, keyId, partnerId, { reason: 'rotated', deletedAt }));
        }
        if (deletedAt !== null && Date.parse(deletedAt) < deletedUntilMs) {
          purgedAt = chain.next();
          const job: Actor = { type: 'system', id: 'purge_keys', name: 'purge_keys', email: null };
          await add(chain.event('key.purged', job, keyId, partnerId, { deletedAt, deleteReason: 'rotated', purgedAt }));
        }
        const isPurged = purgedAt !== null;
        const kept = <Value>(value: Value) => (isPurged ? null : value);
        await copy.keys.add(
          keyId,
          id,
          partnerId,
          permission,
          slot,
          facts.name,
          facts.name.toUpperCase(),
          kept(tag),
          kept(entry.id),
          kept(argon2idHash),
          kept(mac),
          kept(entry.id),
          kept(sealed),
          kept(entry.id),
          'seed',
          facts.expiresAt,
          [],
          scopes,
          JSON.stringify(facts.metadata),
          at,
          actorText(admin),
          suspendedAt,
          deletedAt,
          isDeleted ? 'rotated' : null,
          purgedAt,
        );
      }

      /** An event that changes no state: mostly a reveal, and one of fifty of the first key. */
      async function addFiller(): Promise<void> {
        const number = chain.length();
        const key = number % 50 === 0 ? keys[0] : keys[(number * 7919) % keys.length];
        if (key === undefined) throw new Error('There is no key');
        const admin = admins[number % admins.length] ?? operator;
        if (number % 10 === 3) {
          await add(chain.event('key.updated', admin, key.id, key.partnerId, { changes: {} }));
        } else {
          await add(
            chain.event('key.revealed', admin, key.id, key.partnerId, {
              reason: 'The partner lost it',
              recipient: null,
            }),
          );
        }
      }

      async function add(event: ChainedRow): Promise<void> {
        await copy.events.add(
          id,
          event.sequence,
          event.id,
          event.at,
          event.action,
          event.actorId,
          event.keyId,
          event.partnerId,
          event.canonical,
          event.previousHash,
          event.hash,
        );
      }

      const webhooks = place === 0 ? 10 : 1;
      let webhookId: Id<'webhook'> = nextId('webhook');
      for (let index = 0; index < webhooks; index++) {
        if (index > 0) webhookId = nextId('webhook');
        await copy.webhooks.add(
          webhookId,
          id,
          'https://receiver.example/hook',
          ['organization.updated'],
          sealed,
          entry.id,
          created,
          actorText(firstAdmin),
        );
      }
      for (let index = 0, count = Math.ceil(events / 100); index < count; index++) {
        const at = new Date(endMs - 29 * dayMs + ((29 * dayMs) / count) * index).toISOString();
        const isFailed = index % 100 === 1;
        await copy.deliveries.add(
          nextId('delivery'),
          webhookId,
          index + 1,
          'key.created',
          zeroHash,
          entry.id,
          isFailed ? 'failed' : 'delivered',
          1,
          isFailed ? 1 : 0,
          at,
          at,
          at,
        );
      }
      const head = chain.head();
      await copy.heads.add(id, head.sequence, head.hash, head.at);
      writtenEvents += head.sequence;
      const busyKey = keys[0];
      if (adminToken === undefined || firstPartner === undefined || busyKey === undefined)
        throw new Error('The organization is empty');
      seeded.push({
        id,
        adminToken,
        adminId: firstAdmin.id as AccessTokenId,
        events: head.sequence,
        partnerId: firstPartner.id,
        partnerEmail: firstPartner.email,
        busyKeyId: busyKey.id,
        webhookId,
      });
      if (place % Math.ceil(size.organizations / 5) === 0)
        log(`wrote ${place + 1} organizations, ${writtenEvents} events`);
    }
    for (const copier of Object.values(copy)) await copier.end();
    log(`wrote ${writtenEvents} events; writing usage and the rest`);
    for (const [label, statement] of statementsFor(size, hourlyDays)) {
      await db.query(statement);
      log(label);
    }
    for (const { definition } of indexes) await db.query(definition);
    log('made the indexes on history');
    await db.query('vacuum analyze');
    await db.query('checkpoint');
    const [biggest] = seeded;
    const small = seeded.at(-1);
    if (biggest === undefined || small === undefined) throw new Error('There is no organization');
    return { biggest, small, plaintexts };
  } finally {
    for (const client of clients) await client.end();
  }

  function mint(kind: TokenKind, id: Id<IdKind>): Secret {
    return mintToken({ prefix: 'lk', kind, idSuffix: idSuffix(id) });
  }
}

/** The same bytes for all keys. Nothing here reveals them. */
const sealed = randomBytes(150);

async function connectFast(url: string): Promise<pg.Client> {
  const client = new pg.Client(url);
  await client.connect();
  await client.query(
    `set synchronous_commit = off; set session_replication_role = replica; set maintenance_work_mem = '512MB'; set work_mem = '128MB'`,
  );
  return client;
}

async function dropHistoryIndexes(db: pg.Client): Promise<Array<{ name: string; definition: string }>> {
  const { rows } = await db.query<{ name: string; definition: string }>(
    `select indexname as name, indexdef as definition from pg_indexes where indexname like 'history_by_%' order by 1`,
  );
  await db.query(`drop index ${rows.map(({ name }) => name).join(', ')}`);
  return rows;
}

/** What has no chain and no MAC is made from the rows that are there. */
function statementsFor(size: WorldSize, hourlyDays: number): Array<[label: string, statement: string]> {
  const busy = `(select id, organization_id, partner_id from (
    select *, row_number() over (order by id) as number from api_keys) as numbered where number % ${sampledOneIn} = 1) as key`;
  const counts = `10 + (random() * 90)::int, 1, 0`;
  return [
    [
      'usage by hour',
      `insert into usage_hours (organization_id, partner_id, key_id, hour, allowed, denied, rate_limited)
       select organization_id, partner_id, id, date_trunc('day', now(), 'UTC') - make_interval(days => ${hourlyDays + 1}) + make_interval(hours => hour * 3), ${counts}
       from generate_series(0, ${hourlyDays * 8 + 7}) as hour, ${busy} order by hour, id`,
    ],
    [
      'usage by day',
      `insert into usage_days (organization_id, partner_id, key_id, day, allowed, denied, rate_limited)
       select organization_id, partner_id, id, date_trunc('day', now(), 'UTC') - make_interval(days => ${hourlyDays + 1} + day), ${counts}
       from generate_series(1, ${365 - hourlyDays}) as day, ${busy} order by day, id`,
    ],
    [
      'last uses',
      `insert into key_last_uses (key_id, organization_id, key_created_at, last_used_at)
       select id, organization_id, created_at, case when number % ${sampledOneIn} = 1 then now() - interval '1 hour'
         when number % 2 = 1 then created_at + (now() - created_at) * random() end
       from (select *, row_number() over (order by id) as number from api_keys) as key`,
    ],
    [
      'claims',
      `insert into claims (id, organization_id, partner_id, key_id, expires_at, created_at, created_by, ended_at, end_reason)
       select 'claim_' || substr(id, 5), organization_id, partner_id, id, created_at + interval '1 day', created_at, created_by,
         created_at + interval '1 day', 'expired'
       from (select *, row_number() over (order by id) as number from api_keys) as key where number % 50 = 3`,
    ],
    [
      'expiry notices',
      `insert into expiry_notices (credential_id, expires_at, days_ahead)
       select id, expires_at, case when expires_at < now() + interval '23 hours' then 1 else 7 end from api_keys
       where deleted_at is null and expires_at > now() - interval '1 day' and expires_at < now() + interval '167 hours'`,
    ],
    [
      'recovery requests',
      `insert into recovery_requests (id, organization_id, key_id, subject_deleted_at, details, status, respond_by, created_at,
         created_by, answered_at, answered_by, note)
       select 'recovery_' || substr(id, 5), organization_id, id, deleted_at, 'Seeded', case when is_open then 'open' else 'declined' end,
         deleted_at + interval '40 days', deleted_at, created_by, case when not is_open then deleted_at end,
         case when not is_open then created_by end, case when not is_open then 'No' end
       from (select *, row_number() over (order by id) % 400 = 5 as is_open, row_number() over (order by id) % 40 = 5 as is_chosen
         from api_keys where deleted_at is not null) as key where is_chosen`,
    ],
    [
      'rejected attempts',
      `insert into refused_attempts (id, organization_id, hour, caller_id, caller, operation, code, count, first_at, last_at)
       select 'refusal_' || substr(id, 5), organization_id, at, 'token_' || substr(id, 5), jsonb_build_object('type', 'admin', 'id', 'token_' || substr(id, 5), 'name', 'Seeded', 'email', null),
         case number % 5 when 0 then 'deleteKey' else 'revealKey' end, case number % 7 when 0 then 'scope_missing' else 'forbidden' end, 3, at, at
       from (select *, date_trunc('hour', now()) - make_interval(hours => (number % 2100)::int) as at from (
         select *, row_number() over (order by id) as number from api_keys) as numbered where number % 10 = 3) as key`,
    ],
    [
      'stored replies',
      `insert into idempotency_keys (address, request_mac, request_mac_keyring_id, organization_id, created, has_plaintext, created_at)
       select sha256(number::text::bytea), sha256('request'), (select id from keyring_entries limit 1), null, '{}', false,
         now() - make_interval(secs => number * 86400.0 / ${size.keys / 10})
       from generate_series(1, ${Math.round(size.keys / 9.9)}) as number`,
    ],
  ];
}

let counter = 0;
const idAlphabet = '0123456789abcdefghjkmnpqrstvwxyz';
const timePart = idSuffix(newId('org')).slice(0, 10);
const randomPart = idSuffix(newId('org')).slice(18);

/** Increasing ids, all of the same millisecond: `newId` would take a minute for ten million. */
function nextId<Kind extends IdKind>(kind: Kind): Id<Kind> {
  counter += 1;
  let text = '';
  for (let rest = counter, index = 0; index < 8; index++) {
    text = idAlphabet.charAt(rest % 32) + text;
    rest = Math.floor(rest / 32);
  }
  return `${kind}_${timePart}${text}${randomPart}` as Id<Kind>;
}

function actorText({ email, id, name, type }: Actor): string {
  return `{"email":${JSON.stringify(email)},"id":"${id}","name":"${name}","type":"${type}"}`;
}

interface ChainedRow {
  sequence: number;
  id: string;
  at: string;
  action: string;
  actorId: string;
  keyId: string | null;
  partnerId: string | null;
  canonical: string;
  previousHash: Buffer;
  hash: Buffer;
}

/** Makes the events of one chain, at equal distances. */
function chainWriter(organizationId: OrganizationId, startMs: number, stepMs: number) {
  let sequence = 0;
  let hash: Buffer = zeroHash;
  const timeAt = (number: number) => new Date(startMs + Math.floor(stepMs * number)).toISOString();
  return {
    /** The time of the next event. */
    next: () => timeAt(sequence + 1),
    length: () => sequence,
    head: () => ({ sequence, hash, at: timeAt(sequence) }),
    event(
      action: string,
      actor: Actor,
      keyId: string | null,
      partnerId: string | null,
      details: Record<string, unknown>,
    ): ChainedRow {
      sequence += 1;
      const at = timeAt(sequence);
      const id = nextId('event');
      const quoted = (text: string | null) => (text === null ? 'null' : `"${text}"`);
      // The members of an event in their order (RFC 8785), so that only details need the library.
      const canonical =
        `{"action":"${action}","actor":${actorText(actor)},"at":"${at}","details":${canonicalJson(details)},"id":"${id}",` +
        `"keyId":${quoted(keyId)},"organizationId":"${organizationId}","partnerId":${quoted(partnerId)},` +
        `"request":{"id":"r-${sequence}","ip":"203.0.113.7","userAgent":"curl/8.5.0"},"sequence":${sequence}}`;
      const previousHash = hash;
      hash = createHash('sha256').update(previousHash).update(canonical).digest();
      return { sequence, id, at, action, actorId: actor.id, keyId, partnerId, canonical, previousHash, hash };
    },
  };
}
