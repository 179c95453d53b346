import { type DestinationStream, type Logger, type LoggerOptions, pino } from 'pino';
import pretty from 'pino-pretty';
import { createSecretText } from '../crypto/secret-text.ts';
import { isReaderGone } from '../lib/gone-reader.ts';

interface LoggerSettings {
  level: string;
  tokenPrefix: string;
  /** Readable on a terminal and JSON elsewhere unless told. */
  format?: 'json' | 'pretty' | undefined;
  /** Where the lines go; standard output unless a test wants to read them. */
  destination?: { write(line: string): void };
}

/**
 * JSON lines; on a terminal a readable form of them. Nothing that looks like a token or a webhook's secret gets through,
 * wherever it stands.
 */
export function createLogger({ level, tokenPrefix, format, destination }: LoggerSettings): Logger {
  const options: LoggerOptions = {
    level,
    timestamp: pino.stdTimeFunctions.isoTime,
    redact: {
      paths: [
        '*.authorization',
        '*.password',
        '*.key',
        '*.token',
        '*.secret',
        'authorization',
        'key',
        'token',
        'secret',
      ],
    },
    serializers: { err: errorFacts },
    hooks: { streamWrite: createSecretText(tokenPrefix).mask },
  };
  if (destination !== undefined) return pino(options, destination);
  const isPretty = format === undefined ? process.stdout.isTTY === true : format === 'pretty';
  const output = standardOutput();
  return isPretty ? pino(options, pretty({ destination: output, ignore: 'pid,hostname' })) : pino(options, output);
}

/** A reader that is gone ends the log and not the service. */
function standardOutput(): DestinationStream {
  const output = pino.destination({ dest: process.stdout.fd, sync: true });
  output.on('error', (error: NodeJS.ErrnoException) => {
    if (!isReaderGone(error)) throw error;
    output.write = () => true;
  });
  return output;
}

interface ErrorFacts {
  type: string;
  message: string;
  stack?: string | undefined;
  code?: unknown;
  constraint?: unknown;
  cause?: ErrorFacts;
}

/** Not every member of an error: Postgres puts whole rows, hashes among them, into `detail` and `where`. */
function errorFacts(error: unknown): ErrorFacts {
  if (!(error instanceof Error)) return { type: typeof error, message: String(error) };
  const { code, constraint } = error as { code?: unknown; constraint?: unknown };
  return {
    type: error.name,
    message: error.message,
    stack: error.stack,
    code,
    constraint,
    ...(error.cause === undefined ? {} : { cause: errorFacts(error.cause) }),
  };
}
