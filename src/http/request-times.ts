import { Histogram, Registry } from 'prom-client';

/** A Prometheus histogram of request durations by route and status class. */
export interface RequestTimes {
  /** Called once per route. @param methods the route's methods @param route its pattern, such as `/v1/keys/:keyId` */
  of(methods: readonly string[], route: string, buckets: 'fine' | 'coarse'): ObserveRequest;
  /** The histogram in the text format of Prometheus. */
  text(): Promise<string>;
}

/** Records the duration of one request. */
export type ObserveRequest = (status: number, durationMs: number) => void;

/** Upper bounds in seconds. Only verification has fine ones, because each bound adds a series per route and status. */
const bounds = { fine: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5], coarse: [0.05, 0.5] };

/** Creates the histogram. */
export function createRequestTimes(): RequestTimes {
  // A histogram has one list of bounds, and a registry one histogram per name: two registries.
  const registries = { fine: new Registry(), coarse: new Registry() };
  const histogram = (buckets: 'fine' | 'coarse') =>
    new Histogram({
      name: 'latchkey_http_request_duration_seconds',
      help: 'Duration of HTTP requests by route and status class, in seconds.',
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
      // The format allows only one header per metric.
      return coarse + fine.replace(/^#.*\n/gm, '');
    },
  };
}
