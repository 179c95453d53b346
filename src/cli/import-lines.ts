import { pipeline, Readable } from 'node:stream';
import { type CsvError, parse } from 'csv-parse';
import { Problem } from '../domain/errors.ts';
import { parseJson } from '../http/json-body.ts';
import { linesOf } from '../lib/lines.ts';

export type Format = 'ndjson' | 'csv';

/** A line of a file with keys; in CSV a record, which may span lines. */
export interface Line {
  /** The number of its first line, from 1. */
  number: number;
  /** As it is in the file, without its end. Empty if the line is too long. */
  raw: string;
  read: { entry: unknown } | { path: string; flaw: string };
}

/** Twice what the longest entry needs. */
const longestLineBytes = 131_072;

/** The file cannot be read any further. */
export class UnreadableFile extends Error {
  override readonly name = 'UnreadableFile';
}

export interface LineReader {
  /** @throws UnreadableFile */
  lines: AsyncIterable<Line>;
  /** The header of a CSV file as it is in the file, once the first line was read. */
  header(): string | undefined;
}

/** Reads a file line by line. */
export function readLines(format: Format, chunks: AsyncIterable<Buffer>): LineReader {
  return format === 'csv' ? readCsv(chunks) : { lines: readNdjson(chunks), header: () => undefined };
}

const tooLong = `is longer than ${longestLineBytes} bytes`;

async function* readNdjson(chunks: AsyncIterable<Buffer>): AsyncGenerator<Line> {
  let number = 0;
  for await (const bytes of linesOf(chunks, longestLineBytes)) {
    number += 1;
    const raw = (number === 1 ? withoutBom(bytes) : bytes).toString().replace(/\r$/, '');
    if (bytes.length > longestLineBytes) yield { number, raw: '', read: { path: '', flaw: tooLong } };
    else if (raw.trim() !== '') yield { number, raw, read: parseEntry(withoutBom(bytes)) };
  }
}

const byteOrderMark = Buffer.from('\uFEFF');

function withoutBom(bytes: Buffer): Buffer {
  return bytes.subarray(0, byteOrderMark.length).equals(byteOrderMark) ? bytes.subarray(byteOrderMark.length) : bytes;
}

/** Parses as strictly as a request's body. The message of JSON.parse would quote the text, and so the token. */
function parseEntry(json: Buffer): Line['read'] {
  try {
    return { entry: parseJson(json, undefined) };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    const [first] = error.errors ?? [];
    if (first === undefined) return { path: '', flaw: 'is not valid JSON in UTF-8, or is nested too deeply' };
    return { path: first.path.replace(/^body\./, ''), flaw: first.message };
  }
}

const metadataPrefix = 'metadata.';

/** How the text of a cell becomes the value of a member. */
const cellReaders: Record<string, (cell: string) => unknown> = {
  partnerId: String,
  partnerExternalId: String,
  permission: String,
  name: String,
  expiresAt: String,
  rateLimitRequests: toNumber,
  rateLimitWindowSeconds: toNumber,
  allowedIps: (cell) => cell.split(/[\s;]+/).filter((entry) => entry !== ''),
  scopes: (cell) => cell.split(/\s+/).filter((entry) => entry !== ''),
  metadata: String,
  plaintext: String,
  sha256: String,
  lastFour: String,
};

/** The columns of a CSV file, for messages. */
export const csvColumns = [...Object.keys(cellReaders), `${metadataPrefix}<member>`];

/** Other text is passed on, so that the schema describes the problem. */
function toNumber(cell: string): number | string {
  return /^[0-9]{1,15}$/.test(cell) ? Number(cell) : cell;
}

interface CsvRecord {
  record: string[];
  raw: string;
  info: { lines: number };
}

function readCsv(chunks: AsyncIterable<Buffer>): LineReader {
  let header: { columns: string[]; raw: string } | undefined;
  async function* lines(): AsyncGenerator<Line> {
    for await (const { number, cells, raw } of recordsOf(chunks)) {
      if (header === undefined) header = { columns: readHeader(cells), raw };
      else yield { number, raw, read: toEntry(header.columns, cells, raw) };
    }
  }
  return { lines: lines(), header: () => header?.raw };
}

async function* recordsOf(chunks: AsyncIterable<Buffer>) {
  let broken: CsvError | undefined;
  const parser = parse({
    bom: true,
    raw: true,
    info: true,
    relax_column_count: true,
    skip_empty_lines: true,
    record_delimiter: ['\r\n', '\n'],
    max_record_size: longestLineBytes,
    // Otherwise the parser would drop the records before the error that it has not delivered yet.
    skip_records_with_error: true,
    on_skip: (error) => {
      broken ??= error;
      return undefined;
    },
  });
  // An error ends the loop below.
  pipeline(Readable.from(chunks), parser, () => undefined);
  // The parser counts a CRLF within quotes as two lines.
  let countedTwice = 0;
  let lastLine = 0;
  for await (const { record: cells, raw, info } of parser as AsyncIterable<CsvRecord>) {
    if (broken !== undefined && info.lines >= Number(broken['lines'])) break;
    const breaks = cells.join(',').match(/\r\n|\r|\n/g) ?? [];
    countedTwice += breaks.filter((text) => text === '\r\n').length;
    lastLine = info.lines - countedTwice;
    yield { number: lastLine - breaks.length, cells, raw: raw.replace(/^[\r\n]+|[\r\n]+$/g, '') };
  }
  if (broken !== undefined) throw new UnreadableFile(describeBroken(broken, lastLine + 1));
}

/** After an error in the quotes it is not known where the next record begins. The parser's own message quotes the text. */
function describeBroken({ code }: CsvError, from: number): string {
  const what =
    code === 'CSV_MAX_RECORD_SIZE'
      ? `A record from line ${from} on ${tooLong}; is a quote not closed?`
      : `The quotes of the record from line ${from} on are wrong. A cell with a comma, a quote or a line break must be in ` +
        'quotes, with its own quotes doubled.';
  return `${what} The file was not read any further.`;
}

/** A longer unknown name is not printed, because it may be a token. */
export const longestPrintedName = 15;

function readHeader(cells: readonly string[]): string[] {
  const columns = cells.map((cell) => cell.trim());
  for (const [index, column] of columns.entries()) {
    const isMetadata = column.startsWith(metadataPrefix) && column.length > metadataPrefix.length;
    if (columns.indexOf(column) < index)
      throw new UnreadableFile(`Column ${index + 1} of the header line occurs twice.`);
    if (isMetadata || Object.hasOwn(cellReaders, column)) continue;
    const name = column.length <= longestPrintedName ? ` (${column})` : '';
    throw new UnreadableFile(
      `Line 1: column ${index + 1}${name} is unknown. The first line must name the columns; these are possible: ` +
        `${csvColumns.join(', ')}.`,
    );
  }
  if (!columns.includes('plaintext') && !columns.includes('sha256')) {
    throw new UnreadableFile('Line 1: there is neither a column plaintext nor a column sha256.');
  }
  return columns;
}

/** An empty cell is not given. */
function toEntry(columns: readonly string[], cells: readonly string[], raw: string): Line['read'] {
  if (raw.includes('\uFFFD')) return { path: '', flaw: 'is not valid UTF-8' };
  if (cells.length !== columns.length) {
    return { path: '', flaw: `has ${cells.length} cells, but the header line has ${columns.length}` };
  }
  const given = columns.flatMap((column, index) => (cells[index] ? [[column, cells[index]] as const] : []));
  const members = given.filter(([column]) => column.startsWith(metadataPrefix));
  const plain = Object.fromEntries(
    given.flatMap(([column, cell]) => {
      const read = cellReaders[column];
      return read === undefined ? [] : [[column, read(cell)]];
    }),
  );
  const { rateLimitRequests: requests, rateLimitWindowSeconds: windowSeconds, metadata, ...entry } = plain;
  if (requests !== undefined || windowSeconds !== undefined) entry['rateLimit'] = { requests, windowSeconds };
  if (metadata === undefined && members.length === 0) return { entry };
  const parsed = metadata === undefined ? { entry: {} } : parseEntry(Buffer.from(String(metadata)));
  if (!('entry' in parsed)) return { path: 'metadata', flaw: parsed.flaw };
  const { entry: object } = parsed;
  if (typeof object !== 'object' || object === null || Array.isArray(object)) {
    return { path: 'metadata', flaw: 'must be a JSON object' };
  }
  const added = members.map(([column, cell]) => [column.slice(metadataPrefix.length), cell] as const);
  return { entry: { ...entry, metadata: { ...object, ...Object.fromEntries(added) } } };
}

/** The column that a member of an entry comes from. */
export function columnOf(path: string): string {
  const names: Record<string, string> = {
    'rateLimit.requests': 'rateLimitRequests',
    'rateLimit.windowSeconds': 'rateLimitWindowSeconds',
  };
  return names[path] ?? path;
}
