import { isDeepStrictEqual } from 'node:util';
import type { ChainedEvent, HistoryAction } from '../domain/events.ts';

/** What a record's events give, without a database. A new member of a record that decides anything goes in here. */

export const recordKinds = ['organization', 'access_token', 'partner', 'key'] as const;

export type RecordKind = (typeof recordKinds)[number];

/** A record by its members, in the words of the API: times are text. */
export type State = Record<string, unknown>;

/** The members that an event sets; what is no member of the record is ignored. */
type Rule = (details: Record<string, unknown>, event: ChainedEvent, state: State) => State;

const limited = ['rateLimit'] as const;
const members = {
  organization: ['name', 'keyReveal', ...limited],
  access_token: ['role', 'name', 'email', 'scopes', 'expiresAt'],
  partner: ['email', 'name', 'permissions', ...limited],
  key: ['permission', 'name', 'expiresAt', 'allowedIps', 'metadata', 'replacesKeyId', ...limited],
};

const changed: Rule = ({ changes }) =>
  Object.fromEntries(Object.entries(toObject(changes)).map(([member, change]) => [member, toObject(change)['to']]));

const deleted: Rule = ({ deletedAt }) => ({ deletedAt });
const restored: Rule = () => ({ deletedAt: null });
const suspended: Rule = ({ suspendedAt }) => ({ suspendedAt });
const resumed: Rule = () => ({ suspendedAt: null });

/** By kind: the event that a record begins with, and those that change it. Others say nothing about its state. */
const rules: Record<RecordKind, { begins: HistoryAction; first: Rule; changes: Partial<Record<HistoryAction, Rule>> }> =
  {
    organization: {
      begins: 'organization.created',
      first: (details) => only(members.organization, details),
      changes: {
        'organization.updated': changed,
        'rate_limit.updated': (details, event, { rateLimit }) => ({
          rateLimit: { ...toObject(rateLimit), ...changed(details, event, {}) },
        }),
      },
    },
    access_token: {
      begins: 'access_token.created',
      first: (details) => ({ ...only(members.access_token, details), deletedAt: null }),
      changes: { 'access_token.deleted': deleted },
    },
    partner: {
      begins: 'partner.created',
      first: (details) => ({ ...only(members.partner, details), suspendedAt: null, deletedAt: null }),
      changes: {
        'partner.updated': changed,
        'partner.suspended': suspended,
        'partner.resumed': resumed,
        'partner.deleted': deleted,
        'partner.restored': restored,
      },
    },
    key: {
      begins: 'key.created',
      first: (details, { partnerId }) => ({
        partnerId,
        ...only(members.key, details),
        suspendedAt: null,
        deletedAt: null,
        deleteReason: null,
        purgedAt: null,
      }),
      changes: {
        'key.updated': changed,
        'key.rotated': changed,
        'key.suspended': suspended,
        'key.resumed': resumed,
        'key.deleted': ({ reason, deletedAt }) => ({ deletedAt, deleteReason: reason }),
        'key.restored': () => ({ deletedAt: null, deleteReason: null }),
        'key.purged': ({ purgedAt }) => ({ purgedAt }),
      },
    },
  };

/** The action without which history does not know a record. */
export function firstActionOf(kind: RecordKind): HistoryAction {
  return rules[kind].begins;
}

/** Every action that says something about a record's state. */
export function actionsOf(kind: RecordKind): HistoryAction[] {
  return [rules[kind].begins, ...(Object.keys(rules[kind].changes) as HistoryAction[])];
}

/**
 * A record after one more of its events. Never throws: somebody may have put anything into an event.
 * @param state undefined: history does not know the record yet
 */
export function stateAfter(kind: RecordKind, state: State | undefined, event: ChainedEvent): State | undefined {
  const { begins, first, changes } = rules[kind];
  const details = toObject(event.details);
  if (event.action === begins) return { ...first(details, event, {}), createdBy: toMaker(event.actor) };
  const rule = Object.hasOwn(changes, event.action) ? changes[event.action] : undefined;
  if (state === undefined || rule === undefined) return state;
  return { ...state, ...only(Object.keys(state), { ...state, ...rule(details, event, state) }) };
}

/** A member of a record whose row says something else than its events. */
export interface StateDifference {
  kind: RecordKind;
  id: string;
  /** `id`: the record is known to one of the two alone. */
  member: string;
  history: unknown;
  table: unknown;
}

/** @param history undefined: it does not know the record @param table undefined: there is no such row */
export function differencesOf(
  kind: RecordKind,
  id: string,
  history: State | undefined,
  table: State | undefined,
): StateDifference[] {
  if (history === undefined || table === undefined) {
    if (history === table) return [];
    return [
      { kind, id, member: 'id', history: history === undefined ? null : id, table: table === undefined ? null : id },
    ];
  }
  return Object.keys(table).flatMap((member): StateDifference[] => {
    const sides = { history: history[member] ?? null, table: table[member] ?? null };
    return isDeepStrictEqual(sides.history, sides.table) ? [] : [{ kind, id, member, ...sides }];
  });
}

function only(names: readonly string[], of: Record<string, unknown>): State {
  return Object.fromEntries(names.map((name) => [name, of[name]]));
}

function toObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

/** Who made a record, as far as its row and its event say the same. */
export function toMaker(actor: unknown): unknown {
  const { type, id } = toObject(actor);
  return { type, id };
}
