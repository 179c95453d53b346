import { environment } from './config.ts';

const known = Object.keys(environment.shape);

/** What Kubernetes sets in each container for a Service named latchkey. */
const isServiceLink = (name: string, value: string) =>
  /_SERVICE_(HOST|PORT(_\w+)?)$/.test(name) ||
  (/_PORT(_\w+)?$/.test(name) && /^(tcp|udp|sctp):/.test(value)) ||
  /_PORT_\d+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO)$/.test(name);

/**
 * Warns of variables that are probably meant for Latchkey but have no effect: unknown names that begin with LATCHKEY_, and
 * names that look like a misspelt setting. Returns one line each, without the value.
 */
export function doubtfulVariables(env: NodeJS.ProcessEnv): string[] {
  return Object.entries(env).flatMap(([name, value]) => {
    if (!value || known.includes(name) || isServiceLink(name, value)) return [];
    const meant = nearest(name);
    const isOurs = name.startsWith('LATCHKEY_');
    if (meant !== undefined) return [`${name} has no effect. Did you mean ${meant}?`];
    return isOurs ? [`${name} has no effect: Latchkey has no setting with this name.`] : [];
  });
}

/** The setting that was probably meant. Short names must match: other programs' short names are similar by chance. */
function nearest(name: string): string | undefined {
  const bare = name.replace(/^LATCHKEY_/, '');
  if (known.includes(bare)) return bare;
  const allowed = name.length < 6 ? 0 : name.length < 14 ? 1 : 2;
  return known.find((one) => distance(one, name) <= allowed);
}

/** The number of letters that are missing, superfluous, wrong or swapped with their neighbour (Damerau-Levenshtein). */
function distance(one: string, other: string): number {
  const rows: number[][] = [Array.from({ length: other.length + 1 }, (_, at) => at)];
  for (let i = 1; i <= one.length; i++) {
    const row = [i];
    for (let j = 1; j <= other.length; j++) {
      const cost = one[i - 1] === other[j - 1] ? 0 : 1;
      const at = (up: number, left: number) => rows[i - up]?.[j - left] ?? Number.POSITIVE_INFINITY;
      const isSwap = i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1];
      row.push(Math.min(at(1, 0) + 1, (row[j - 1] ?? 0) + 1, at(1, 1) + cost, isSwap ? at(2, 2) + 1 : Infinity));
    }
    rows.push(row);
  }
  return rows[one.length]?.[other.length] ?? 0;
}
