/** How much a seeded world has. */
export interface WorldSize {
  events: number;
  keys: number;
  partners: number;
  organizations: number;
}

const full: WorldSize = { events: 10_000_000, keys: 1_000_000, partners: 200_000, organizations: 5_000 };

function part(divisor: number): WorldSize {
  return {
    events: full.events / divisor,
    keys: full.keys / divisor,
    partners: full.partners / divisor,
    organizations: full.organizations / divisor,
  };
}

export const worldSizes: Readonly<Record<string, WorldSize>> = {
  hundredth: part(100),
  tenth: part(10),
  full,
};

/** The share of the first organization. */
const biggestShare = 0.1;

/** Divides `total` among organizations: the first has a tenth, and each further one fewer than the one before. */
export function sharesOf(total: number, organizations: number): number[] {
  const weights = Array.from({ length: organizations - 1 }, (_, index) => (index + 1) ** -0.8);
  const sum = weights.reduce((all, weight) => all + weight, 0);
  const others = weights.map((weight) => Math.max(1, Math.round((total * (1 - biggestShare) * weight) / sum)));
  return [Math.round(total * biggestShare), ...others];
}
