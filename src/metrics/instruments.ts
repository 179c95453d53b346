import { Counter, Gauge, type Registry } from 'prom-client';

/** One value of a metric with its labels. */
export type Sample = [labels: Record<string, string>, value: number];

export interface Metric {
  /** Without the prefix `latchkey_`. */
  name: string;
  help: string;
  labels?: string[];
}

/** Defines a counter whose values are read at each collection. */
export function counter(registry: Registry, metric: Metric, read: () => Iterable<Sample>): void {
  new Counter({
    ...configurationOf(registry, metric),
    collect() {
      this.reset();
      for (const [of, value] of read()) this.inc(of, value);
    },
  });
}

/** Defines a gauge whose values are read at each collection. */
export function gauge(registry: Registry, metric: Metric, read: () => Iterable<Sample>): void {
  new Gauge({
    ...configurationOf(registry, metric),
    collect() {
      this.reset();
      for (const [of, value] of read()) this.set(of, value);
    },
  });
}

function configurationOf(registry: Registry, { name, help, labels = [] }: Metric) {
  return { name: `latchkey_${name}`, help, labelNames: labels, registers: [registry] };
}

/** The samples of a tally. @param label the name of the label that gets the tally's words */
export function by(label: string, tally: Record<string, number>): Sample[] {
  return Object.entries(tally).map(([word, count]) => [{ [label]: word }, count]);
}
