import type { Logger } from 'pino';
import { ConfigError, readConfig } from '../config/config.ts';
import { doubtfulVariables } from '../config/doubtful-variables.ts';
import { createLogger } from '../service/logger.ts';
import { type Service, startService } from '../service/service.ts';
import { exitCodeOf } from './exit-code.ts';
import { describeFailure } from './failure.ts';
import { welcome } from './welcome.ts';

/** The time after which a shutdown that hangs is aborted, in addition to the drain. */
const stopWithinMs = 9_900;

/**
 * Runs the service until a signal stops it.
 * @param mayEmbed whether an embedded Postgres is started if DATABASE_URL is not set
 */
export async function serve(env: NodeJS.ProcessEnv, { mayEmbed }: { mayEmbed: boolean }): Promise<void> {
  const doubtful = doubtfulVariables(env);
  let logger: Logger | undefined;
  try {
    const config = readConfig(env, { keyring: true, database: !mayEmbed });
    logger = createLogger({
      level: config.LOG_LEVEL,
      format: config.LOG_FORMAT,
      tokenPrefix: config.TOKEN_PREFIX,
    });
    for (const line of doubtful) logger.warn(line);
    endOnUncaught(logger);
    const stopSignal = nextStopSignal();
    const service = await startService(config, logger);
    if (service.embedded !== undefined) process.stdout.write(welcome(service.url, service.embedded));
    const mismatch = await Promise.race([stopSignal, untilAborted(service.unusable)]);
    if (mismatch !== undefined) logger.fatal(mismatch.message);
    const failed = await stop(service, logger, config.DRAIN_SECONDS * 1_000);
    process.exit(failed.length === 0 && mismatch === undefined ? 0 : 1);
  } catch (error) {
    // Startup errors are printed as text, because a person usually reads them.
    process.stderr.write(`latchkey: ${describeFailure(error, env)}\n`);
    if (error instanceof ConfigError) for (const line of doubtful) process.stderr.write(`  ${line}\n`);
    logger?.debug({ err: error }, 'The service did not start.');
    process.exit(exitCodeOf(error));
  }
}

async function stop(service: Service, logger: Logger, drainMs: number): Promise<string[]> {
  logger.info('Stopping.');
  const withinMs = Math.max(drainMs - 1_000, 0) + stopWithinMs;
  setTimeout(() => {
    logger.error(`The shutdown did not finish within ${withinMs / 1_000} s.`);
    process.exit(1);
  }, withinMs).unref();
  return service.stop();
}

/** @returns the signal's reason */
function untilAborted(signal: AbortSignal): Promise<Error> {
  return new Promise((resolve) => {
    signal.addEventListener('abort', () => resolve(signal.reason as Error), { once: true });
    if (signal.aborted) resolve(signal.reason as Error);
  });
}

const signals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/**
 * Resolves at the first stop signal. A second one ends the process at once, except SIGHUP: a closed terminal may send
 * it twice.
 */
function nextStopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let isStopping = false;
    for (const signal of signals) {
      process.on(signal, () => {
        if (isStopping && signal !== 'SIGHUP') process.exit(130);
        isStopping = true;
        resolve();
      });
    }
  });
}

/** A process in an unknown state must not verify keys. */
function endOnUncaught(logger: Logger): void {
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => {
      logger.fatal({ err: error }, event);
      process.exit(1);
    });
  }
}
