import { isDeepStrictEqual } from 'node:util';
import type { ChainedEvent, HistoryAction } from '../domain/events.ts';

/** Computes a record's state from its events alone. Add every new member that affects a decision here. */

export const recordKinds = ['organization', 'access_token', 'partner', 'key', 'history_archive'] as const;

export type RecordKind = (typeof recordKinds)[number];

/** A record's members as the API names them; times are text. */
export type State = Record<string, unknown>;

/** The members that an event sets. Names that are not members of the record are ignored. */
type Rule = (details: Record<string, unknown>, event: ChainedEvent, state: State) => State;

const limited = ['rateLimit'] as const;
const members = {
  organization: [
    'name',
    'keyReveal',
    'leakResponse',
    'selfService',
    'maxKeyLifetimeSeconds',
    'defaultKeyLifetimeSeconds',
    'idleSuspendAfterDays',
    ...limited,
  ],
  access_token: ['role', 'name', 'email', 'scopes', 'expiresAt'],
  partner: ['email', 'name', 'externalId', 'metadata', 'permissions', ...limited],
  history_archive: [
    'chain',
    'firstSequence',
    'lastSequence',
    'head',
    'fileSha256',
    'fileBytes',
    'statesSha256',
    'archivedAt',
  ],
  key: ['permission', 'name', 'expiresAt', 'allowedIps', 'scopes', 'metadata', 'replacesKeyId', ...limited],
};

const changed: Rule = ({ changes }) =>
  Object.fromEntries(Object.entries(toObject(changes)).map(([member, change]) => [member, toObject(change)['to']]));

const deleted: Rule = ({ deletedAt }) => ({ deletedAt });
const restored: Rule = () => ({ deletedAt: null });
const suspended: Rule = ({ suspendedAt, reason }) => ({ suspendedAt, suspendedReason: reason });
const resumed: Rule = () => ({ suspendedAt: null, suspendedReason: null });

const noEvent = { partnerId: null } as ChainedEvent;

interface Rules {
  /** The events that create a record. */
  begins: HistoryAction[];
  first: Rule;
  /** The events that change it. Other events do not affect its state. */
  changes: Partial<Record<HistoryAction, Rule>>;
}

const rules: Record<RecordKind, Rules> = {
  organization: {
    begins: ['organization.created'],
    first: (details) => only(members.organization, details),
    changes: {
      'organization.updated': changed,
      'rate_limit.updated': (details, event, { rateLimit }) => ({
        rateLimit: { ...toObject(rateLimit), ...changed(details, event, {}) },
      }),
    },
  },
  access_token: {
    begins: ['access_token.created'],
    first: (details) => ({ ...only(members.access_token, details), deletedAt: null }),
    changes: { 'access_token.deleted': deleted },
  },
  history_archive: {
    begins: ['history.archived'],
    first: (details) => only(members.history_archive, details),
    changes: {},
  },
  partner: {
    begins: ['partner.created'],
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
    begins: ['key.created', 'key.imported'],
    first: (details, { partnerId, action }) => ({
      partnerId,
      origin: action === 'key.imported' ? 'imported' : 'created',
      ...only(members.key, details),
      suspendedAt: null,
      suspendedReason: null,
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

/** The actions that create a record of this kind. */
export function firstActionsOf(kind: RecordKind): HistoryAction[] {
  return rules[kind].begins;
}

/** Every action that affects a record's state. */
export function actionsOf(kind: RecordKind): HistoryAction[] {
  return [...rules[kind].begins, ...(Object.keys(rules[kind].changes) as HistoryAction[])];
}

/**
 * Applies an event to a state. Never throws, because an event may have been written by hand.
 * @param state undefined if no event has created the record yet
 */
export function stateAfter(kind: RecordKind, state: State | undefined, event: ChainedEvent): State | undefined {
  const { begins, first, changes } = rules[kind];
  const details = toObject(event.details);
  if (begins.includes(event.action)) return { ...first(details, event, {}), createdBy: toCreator(event.actor) };
  const rule = Object.hasOwn(changes, event.action) ? changes[event.action] : undefined;
  if (state === undefined || rule === undefined) return state;
  return { ...state, ...only(Object.keys(state), { ...state, ...rule(details, event, state) }) };
}

/** A stored state, with the members that its version did not have. */
export function completed(kind: RecordKind, stored: State): State {
  return { ...rules[kind].first({}, noEvent, {}), ...stored };
}

/** A member whose value in the row differs from the value that the events give. */
export interface StateDifference {
  kind: RecordKind;
  id: string;
  /** `id` if the record exists on one side only. */
  member: string;
  history: unknown;
  table: unknown;
}

/**
 * @param history undefined if no event created the record
 * @param table undefined if there is no row
 */
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

/** The parts of the creator that both the row and the event store. */
export function toCreator(actor: unknown): unknown {
  const { type, id } = toObject(actor);
  return { type, id };
}
