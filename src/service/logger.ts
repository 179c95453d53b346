import { type DestinationStream, type Logger, type LoggerOptions, pino } from 'pino';
import pretty from 'pino-pretty';
import { createSecretText } from '../crypto/secret-text.ts';
import { isReaderGone } from '../lib/gone-reader.ts';

interface LoggerSettings {
  level: string;
  tokenPrefix: string;
  /** Default: `pretty` on a terminal, otherwise `json`. */
  format?: 'json' | 'pretty' | undefined;
  /** Default: standard output. */
  destination?: { write(line: string): void };
}

/** Writes JSON lines, or a readable form on a terminal. Everything that looks like a token or a webhook secret is masked. */
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

/** If the reader of standard output is gone, only the log ends; the service goes on. */
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

/** Only some members of an error: Postgres puts whole rows, with hashes, into `detail` and `where`. */
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
