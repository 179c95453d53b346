import canonicalize from 'canonicalize';

/** Canonical JSON (RFC 8785): equal values have the same text, whatever the order of their members. */
export function canonicalJson(value: unknown): string {
  const text = canonicalize(value);
  if (text === undefined) throw new TypeError('The value has no canonical form');
  return text;
}
