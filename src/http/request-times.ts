import { Histogram, Registry } from 'prom-client';

/** How long requests took, by route and by how they ended, as a histogram of Prometheus. */
export interface RequestTimes {
  /** For a route, once. @param methods those that it is declared for @param route its pattern, such as `/v1/keys/:keyId` */
  of(methods: readonly string[], route: string, buckets: 'fine' | 'coarse'): ObserveRequest;
  /** In the text format of Prometheus. */
  text(): Promise<string>;
}

export type ObserveRequest = (status: number, durationMs: number) => void;

/** Upper bounds in seconds. Verification, on which others wait, has fine ones: each bound is a series for each route and status. */
const bounds = { fine: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5], coarse: [0.05, 0.5] };

export function createRequestTimes(): RequestTimes {
  // One histogram has one list of bounds, and one registry has one histogram of a name.
  const registries = { fine: new Registry(), coarse: new Registry() };
  const histogram = (buckets: 'fine' | 'coarse') =>
    new Histogram({
      name: 'latchkey_http_request_duration_seconds',
      help: 'How long requests took, by route and by how they ended.',
      labelNames: ['method', 'route', 'status'],
      buckets: bounds[buckets],
      registers: [registries[buckets]],
    });
  const histograms = { fine: histogram('fine'), coarse: histogram('coarse') };
  return {
    of(methods, route, buckets) {
      const method = methods.length === 1 ? (methods[0] ?? '') : 'any';
      const byClass: Array<Histogram.Internal<string> | undefined> = [];
      return (status, durationMs) => {
        const digit = Math.trunc(status / 100);
        byClass[digit] ??= histograms[buckets].labels(method, route, `${digit}xx`);
        byClass[digit].observe(durationMs / 1_000);
      };
    },
    async text() {
      const [coarse, fine] = await Promise.all([registries.coarse.metrics(), registries.fine.metrics()]);
      // The lines of one metric are one group, below one heading.
      return coarse + fine.replace(/^#.*\n/gm, '');
    },
  };
}
