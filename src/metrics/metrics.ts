import { Registry } from 'prom-client';
import type { Metrics } from '../http/metrics-routes.ts';
import { singleFlight } from '../lib/single-flight.ts';
import { type DatabaseMetricsOptions, defineDatabaseMetrics } from './database-metrics.ts';
import { defineProcessMetrics, type ProcessMetricsOptions } from './process-metrics.ts';

export interface MetricsOptions extends ProcessMetricsOptions, DatabaseMetricsOptions {
  /** The registry that already has the metrics of the process, if there is one. */
  registry?: Registry | undefined;
}

/**
 * The service's metrics (docs/metrics.md). Labels are words of closed lists, never an id or anything that a caller has
 * sent.
 */
export function createMetrics(options: MetricsOptions): Metrics {
  const registry = options.registry ?? new Registry();
  defineProcessMetrics(registry, options);
  const readDatabase = defineDatabaseMetrics(registry, options);
  return {
    contentType: registry.contentType,
    // Concurrent requests share one collection.
    text: singleFlight(async () => {
      await readDatabase();
      return (await options.tallies.times.text()) + (await registry.metrics());
    }),
  };
}
