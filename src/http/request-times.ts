/** How long requests took, by route and by how they ended. */
export interface RequestTimes {
  /** For a route, once. @param bucketsMs upper bounds of its histogram @param methods those that it is declared for @param route its pattern, such as `/v1/keys/:keyId` */
  of(methods: readonly string[], route: string, bucketsMs: readonly number[]): RouteTimes;
  /** What has been observed, in no order. */
  read(): Iterable<ObservedTimes>;
}

export interface RouteTimes {
  observe(status: number, durationMs: number): void;
}

export interface ObservedTimes {
  method: string;
  route: string;
  /** `2xx` and so on. */
  status: string;
  bucketsMs: readonly number[];
  /** How many took as long as each of `bucketsMs` at most and longer than the one before; last those beyond. */
  counts: readonly number[];
  sumMs: number;
}

/** Of verification, on which others wait. */
export const fineBucketsMs = [0.5, 1, 2.5, 5, 10, 25, 100, 500, 2_500] as const;

/** Of the many other routes. Each bound is a series for each route and status. */
export const coarseBucketsMs = [50, 500] as const;

interface Series extends ObservedTimes {
  counts: number[];
}

/**
 * A histogram that costs a request some additions: a route finds its series by the first digit of the status. prom-client
 * looks its labels up by name at each observation, which took longer than the line in the log.
 */
export function createRequestTimes(): RequestTimes {
  const known = new Map<string, Series[]>();

  function seriesOf(method: string, route: string): Series[] {
    const name = `${method} ${route}`;
    const series = known.get(name) ?? [];
    known.set(name, series);
    return series;
  }

  return {
    of(methods, route, bucketsMs) {
      const method = methods.length === 1 ? (methods[0] ?? '') : 'any';
      const byClass = seriesOf(method, route);
      return {
        observe(status, durationMs) {
          const digit = Math.trunc(status / 100);
          let series = byClass[digit];
          if (series === undefined) {
            const counts = new Array<number>(bucketsMs.length + 1).fill(0);
            series = { method, route, status: `${digit}xx`, bucketsMs, counts, sumMs: 0 };
            byClass[digit] = series;
          }
          let bucket = 0;
          while (bucket < bucketsMs.length && durationMs > (bucketsMs[bucket] ?? 0)) bucket += 1;
          series.counts[bucket] = (series.counts[bucket] ?? 0) + 1;
          series.sumMs += durationMs;
        },
      };
    },
    read: () => [...known.values()].flatMap((byClass) => byClass.filter((series) => series !== undefined)),
  };
}
