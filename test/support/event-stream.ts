import { once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { eventually, type Scope } from './process.ts';

export interface StreamEvent {
  event: string;
  // biome-ignore lint/suspicious/noExplicitAny: an event's members are what the tests are about to assert
  data: any;
  /** Time of arrival, in monotonic milliseconds. */
  atMs: number;
}

/** What `GET /v1/changes` has sent so far. */
export interface Followed {
  status: number;
  headers: IncomingMessage['headers'];
  events: StreamEvent[];
  /** The raw text, with comments. */
  text(): string;
  isOver(): boolean;
  /** The first event of this kind, waiting for at most 5 s. */
  until(event: string, matches?: (data: StreamEvent['data']) => boolean): Promise<StreamEvent>;
  /** Pauses reading; the returned function resumes it. */
  pause(): void;
  resume(): void;
  close(): void;
}

export async function follow(t: Scope, url: string, token: string, headers = {}): Promise<Followed> {
  const clientRequest = request(`${url}/v1/changes`, {
    agent: false,
    headers: { authorization: `Bearer ${token}`, ...headers },
  });
  clientRequest.on('error', () => undefined);
  clientRequest.end();
  const [response] = (await once(clientRequest, 'response')) as [IncomingMessage];
  t.teardown(() => clientRequest.destroy());
  const events: StreamEvent[] = [];
  let [text, read, isOver] = ['', 0, false];
  response.setEncoding('utf8');
  response.on('data', (chunk: string) => {
    text += chunk;
    for (let end = text.indexOf('\n\n', read); end >= 0; end = text.indexOf('\n\n', read)) {
      const lines = text.slice(read, end).split('\n');
      read = end + 2;
      const of = (name: string) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const event = of('event');
      if (event !== undefined) events.push({ event, data: JSON.parse(of('data') ?? ''), atMs: performance.now() });
    }
  });
  response.on('error', () => undefined);
  response.on('close', () => {
    isOver = true;
  });
  return {
    status: response.statusCode ?? 0,
    headers: response.headers,
    events,
    text: () => text,
    isOver: () => isOver,
    until: (event, matches = () => true) =>
      eventually(async () => events.find((one) => one.event === event && matches(one.data)), 5_000),
    pause: () => void response.pause(),
    resume: () => void response.resume(),
    close: () => void clientRequest.destroy(),
  };
}
