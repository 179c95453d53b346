import canonicalize from 'canonicalize';

/** JSON by RFC 8785: one text for equal values, whatever the order of their members. */
export function canonicalJson(value: unknown): string {
  const text = canonicalize(value);
  if (text === undefined) throw new TypeError('the value has no canonical form');
  return text;
}
