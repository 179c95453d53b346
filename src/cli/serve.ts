import type { Logger } from 'pino';
import { ConfigError, readConfig } from '../config/config.ts';
import { doubtfulVariables } from '../config/doubtful-variables.ts';
import { createLogger } from '../service/logger.ts';
import { type Service, startService } from '../service/service.ts';
import { exitCodeOf } from './exit-code.ts';
import { describeFailure } from './failure.ts';
import { welcome } from './welcome.ts';

/** Past this a stop that hangs is ended the hard way, however its phases fare; what the drain takes comes on top. */
const stopWithinMs = 9_900;

/**
 * Runs the service until a signal ends it.
 * @param mayEmbed whether it may start a Postgres of its own where DATABASE_URL is not set
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
    await stopSignal;
    await stop(service, logger, config.DRAIN_SECONDS * 1_000);
  } catch (error) {
    // Before there is a service there is one person who reads this.
    process.stderr.write(`latchkey: ${describeFailure(error, env)}\n`);
    if (error instanceof ConfigError) for (const line of doubtful) process.stderr.write(`  ${line}\n`);
    logger?.debug({ err: error }, 'The service did not start.');
    process.exit(exitCodeOf(error));
  }
}

async function stop(service: Service, logger: Logger, drainMs: number): Promise<void> {
  logger.info('Stopping.');
  const withinMs = Math.max(drainMs - 1_000, 0) + stopWithinMs;
  setTimeout(() => {
    logger.error(`Not everything ended within ${withinMs / 1_000} s.`);
    process.exit(1);
  }, withinMs).unref();
  const failed = await service.stop();
  process.exit(failed.length === 0 ? 0 : 1);
}

const signals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/**
 * The first signal asks for an orderly end; a second one ends the process at once. Only SIGHUP does not: a closed
 * terminal may send it twice.
 */
function nextStopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let asked = false;
    for (const signal of signals) {
      process.on(signal, () => {
        if (asked && signal !== 'SIGHUP') process.exit(130);
        asked = true;
        resolve();
      });
    }
  });
}

/** A process in an unknown state must not go on answering whether keys are good. */
function endOnUncaught(logger: Logger): void {
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => {
      logger.fatal({ err: error }, event);
      process.exit(1);
    });
  }
}
