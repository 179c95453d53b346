import type { z } from 'zod';
import type { CreatedKey } from '../keys/commands.ts';
import type { ShownKey } from '../keys/store.ts';
import { createdKeyView, type KeyViewContext, keyView, toCreatedKeyView, toKeyView } from '../keys/views.ts';

// What the organization notes about a key for itself is not shown to its holder.
const hidden = { metadata: true, createdBy: true, lastUsedAt: true, suspendedReason: true } as const;

export const ownKeyView = keyView.omit(hidden).meta({ id: 'OwnKey' });

export const createdOwnKeyView = createdKeyView.omit(hidden).meta({ id: 'CreatedOwnKey' });

export function toOwnKeyView(key: ShownKey, context: KeyViewContext): z.infer<typeof ownKeyView> {
  const { metadata, createdBy, lastUsedAt, suspendedReason, ...own } = toKeyView(key, context);
  return own;
}

/** With the plaintext, only for the reply that creates the key. */
export function toCreatedOwnKeyView(created: CreatedKey, context: KeyViewContext): z.infer<typeof createdOwnKeyView> {
  const { metadata, createdBy, lastUsedAt, suspendedReason, ...own } = toCreatedKeyView(created, context);
  return own;
}
