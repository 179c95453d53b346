import { Secret } from '../crypto/secret.ts';
import type { KeptReply, Path } from '../db/schema.ts';

/** The parts of a reply: what is sent, and what may be kept of it. */

/** A reply as a route shows it. Plaintexts in it are still `Secret`s, each beside the `id` of the record that it opens. */
export interface Shown<View> {
  view: View;
  /** The path of what was created, which makes the reply a 201. */
  location?: string;
  etag?: string;
}

/** A plaintext and where in the body it stands. */
export interface PlacedSecret {
  path: Path;
  secret: Secret;
}

/** A view as it is sent: a plaintext is text. */
export type Sent<View> = View extends Secret
  ? string
  : View extends string
    ? View
    : View extends ReadonlyArray<infer Item>
      ? Sent<Item>[]
      : View extends object
        ? { [Member in keyof View]: Sent<View[Member]> }
        : View;

/** What is kept can be written down as it is: there is no plaintext in it, whatever the view was made of. */
export function takeApart({ view, location, etag }: Shown<unknown>): { kept: KeptReply; secrets: PlacedSecret[] } {
  const secrets: PlacedSecret[] = [];
  const body = withoutSecrets(view, [], secrets);
  const kept = {
    status: location === undefined ? 200 : 201,
    headers: { ...(location === undefined ? {} : { location }), ...(etag === undefined ? {} : { etag }) },
    body,
    secrets: secrets.map(({ path }) => path),
  };
  return { kept, secrets };
}

function withoutSecrets(value: unknown, path: Path, found: PlacedSecret[]): unknown {
  if (value instanceof Secret) {
    found.push({ path, secret: value });
    return undefined;
  }
  if (Array.isArray(value)) return value.map((item, index) => withoutSecrets(item, [...path, index], found));
  if (typeof value !== 'object' || value === null || value instanceof Date) return value;
  const members = Object.entries(value).map(([name, member]) => [name, withoutSecrets(member, [...path, name], found)]);
  return Object.fromEntries(members);
}

/** The body with these plaintexts in their places. */
export function putTogether(body: unknown, secrets: readonly PlacedSecret[]): unknown {
  return secrets.reduce((filled, { path, secret }) => put(filled, path, secret.reveal()), body);
}

function put(value: unknown, [step, ...rest]: Path, text: string): unknown {
  if (step === undefined) return text;
  if (Array.isArray(value)) return value.map((item, index) => (index === step ? put(item, rest, text) : item));
  const members = value as Record<string, unknown>;
  return { ...members, [step]: put(members[step], rest, text) };
}

/** The id of the record whose plaintext belongs to this place; undefined where the object there names none. */
export function ownerOf(body: unknown, path: Path): string | undefined {
  let value = body;
  for (const step of path.slice(0, -1)) value = (value as Record<string | number, unknown>)[step];
  const { id } = value as { id?: unknown };
  return typeof id === 'string' ? id : undefined;
}
