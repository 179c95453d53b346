import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders, type IncomingMessage, request } from 'node:http';
import { type AddressInfo, createServer as createSocketServer, type Socket } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { freePort } from './ports.ts';
import { type RunningProcess, run, untilListening } from './process.ts';
import { fill, snippetsOf } from './snippets.ts';

/** The ports around a gateway, and its token. */
interface GatewaySettings {
  latchkeyPort: number;
  backendPort: number;
  token: string;
  /** With the changes of the page for an application that uses `Authorization` itself. */
  leavesAuthorization?: boolean;
}

export interface Gateway {
  port: number;
  process: RunningProcess;
}

export type StartGateway = (t: Test, settings: GatewaySettings) => Promise<Gateway>;

/** The snippets of the section, with the page's changes for an application that uses `Authorization` itself. */
async function snippetsFor(section: string, leavesAuthorization = false): Promise<string[]> {
  const [first = '', ...others] = await snippetsOf('docs/gateways.md', section);
  if (!leavesAuthorization) return [first, ...others];
  const page = await readFile('docs/gateways.md', 'utf8');
  const chapter = page.split('## Where the application needs Authorization\n')[1] ?? '';
  const diff = new RegExp(`^${section}[^\n]*:\n\n\`\`\`diff\n(.*?)^\`\`\`$`, 'ms').exec(chapter)?.[1];
  if (diff === undefined) throw new Error(`docs/gateways.md should have a diff for ${section}`);
  return [applyDiff(first, diff), ...others];
}

function applyDiff(text: string, diff: string): string {
  const lines = text.split('\n');
  let at = 0;
  for (const change of diff.trimEnd().split('\n')) {
    const [sign, line] = [change[0], change.slice(1)];
    if (sign === '+') {
      lines.splice(at, 0, line);
      at += 1;
      continue;
    }
    at = lines.indexOf(line, at);
    if (at < 0) throw new Error(`docs/gateways.md should have «${line}»`);
    if (sign === '-') lines.splice(at, 1);
    else at += 1;
  }
  return lines.join('\n');
}

async function folder(t: Test): Promise<string> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-gateway-'));
  t.teardown(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  return directory;
}

async function untilReady(port: number, process: RunningProcess): Promise<Gateway> {
  await untilListening(port, process);
  return { port, process };
}

/** nginx in the foreground, with all its files in a folder. */
export const startNginx: StartGateway = async (t, { latchkeyPort, backendPort, token, leavesAuthorization }) => {
  const [directory, port, [site, tokenFile]] = await Promise.all([
    folder(t),
    freePort(),
    snippetsFor('nginx', leavesAuthorization),
  ]);
  await writeFile(path.join(directory, 'token.conf'), fill(tokenFile, { 'lk_v_…': token }), { mode: 0o600 });
  await writeFile(
    path.join(directory, 'site.conf'),
    fill(site, {
      'server 127.0.0.1:8080;': `server 127.0.0.1:${latchkeyPort};`,
      'proxy_pass http://127.0.0.1:9000;': `proxy_pass http://127.0.0.1:${backendPort};`,
      'listen 80;': `listen 127.0.0.1:${port};`,
      '/etc/nginx/latchkey-token.conf': path.join(directory, 'token.conf'),
    }),
  );
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((part) => `${part}_temp_path ${part};`);
  const main = [
    'daemon off;',
    `user ${userInfo().username};`,
    'pid nginx.pid;',
    'error_log stderr;',
    'events {}',
    `http { access_log access.log; ${temporary.join(' ')} include site.conf; }`,
  ];
  await writeFile(path.join(directory, 'nginx.conf'), main.join('\n'));
  await chmod(directory, 0o755);
  return untilReady(port, run(t, 'nginx', ['-p', directory, '-c', 'nginx.conf', '-e', 'stderr']));
};

/** Caddy without its admin port, with all its files in a folder. */
export const startCaddy: StartGateway = async (t, { latchkeyPort, backendPort, token, leavesAuthorization }) => {
  const [directory, port, [caddyfile]] = await Promise.all([
    folder(t),
    freePort(),
    snippetsFor('Caddy', leavesAuthorization),
  ]);
  const config = path.join(directory, 'Caddyfile');
  await writeFile(
    config,
    fill(caddyfile, {
      '{\n\tlog {': '{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tlog {',
      'api.example.com {': `http://127.0.0.1:${port} {\n\tlog`,
      'forward_auth 127.0.0.1:8080 {': `forward_auth 127.0.0.1:${latchkeyPort} {`,
      'reverse_proxy 127.0.0.1:9000 {': `reverse_proxy 127.0.0.1:${backendPort} {`,
    }),
  );
  const env = { LATCHKEY_VERIFIER_TOKEN: token, HOME: directory, XDG_CONFIG_HOME: directory, XDG_DATA_HOME: directory };
  return untilReady(port, run(t, 'caddy', ['run', '--config', config], { env }));
};

/** HAProxy in the foreground, with its files in a folder. */
export const startHaproxy: StartGateway = async (t, { latchkeyPort, backendPort, token }) => {
  const [directory, port, [script, configuration]] = await Promise.all([
    folder(t),
    freePort(),
    snippetsOf('docs/gateways.md', 'HAProxy'),
  ]);
  const lua = path.join(directory, 'latchkey.lua');
  await writeFile(lua, fill(script, { 'http://127.0.0.1:8080/': `http://127.0.0.1:${latchkeyPort}/` }));
  const config = path.join(directory, 'haproxy.cfg');
  await writeFile(
    config,
    fill(configuration, {
      '/etc/haproxy/latchkey.lua': lua,
      'bind :80': `bind 127.0.0.1:${port}`,
      'server api 127.0.0.1:9000': `server api 127.0.0.1:${backendPort}`,
    }),
  );
  return untilReady(port, run(t, 'haproxy', ['-f', config], { env: { LATCHKEY_VERIFIER_TOKEN: token } }));
};

/** A request that reached the backend. */
export interface Passed {
  method: string;
  url: string;
  headers: IncomingHttpHeaders;
  /** Each header as sent, repeated headers repeatedly. */
  fields: Array<[name: string, value: string]>;
  sha256: string;
}

export interface Backend {
  port: number;
  passed: Passed[];
}

/** A backend that stores its requests, and replies with the status at the end of the path, by default 200. */
export async function startBackend(t: Test): Promise<Backend> {
  const passed: Passed[] = [];
  const server = createServer(async (request, response) => {
    const hash = createHash('sha256');
    for await (const chunk of request) hash.update(chunk);
    const { method = '', url = '', headers, rawHeaders } = request;
    const fields = rawHeaders.flatMap(
      (name, at): Array<[string, string]> => (at % 2 === 0 ? [[name.toLowerCase(), rawHeaders[at + 1] ?? '']] : []),
    );
    passed.push({ method, url, headers, fields, sha256: hash.digest('hex') });
    response.writeHead(Number(/\/(\d{3})$/.exec(url)?.[1] ?? 200)).end('the backend');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
    server.closeAllConnections();
  });
  return { port: (server.address() as AddressInfo).port, passed };
}

/** All headers that a backend could read as an identity. nginx omits empty ones. */
export function identityIn({ fields }: Passed): Record<string, string> {
  const found: Record<string, string> = { 'x-latchkey-partner-id': '', 'x-latchkey-partner-external-id': '' };
  for (const [name, value] of fields) {
    if (!/^x[-_]latchkey/.test(name)) continue;
    found[name] = found[name] ? `${found[name]}, ${value}` : value;
  }
  return found;
}

interface Question {
  method?: string;
  path?: string;
  headers?: Record<string, string | string[]>;
  body?: Buffer;
  /** The address from which the client calls. */
  from?: string;
}

/** A client of a gateway, which may send anything. */
export async function send(port: number, { method = 'GET', path = '/', headers = {}, body, from }: Question = {}) {
  const localAddress = from ?? '127.0.0.1';
  const sent = request({ host: '127.0.0.1', port, localAddress, method, path, agent: false, headers });
  sent.end(body);
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) text += chunk;
  response.socket.destroy();
  return { status: response.statusCode ?? 0, headers: response.headers, text };
}

/** Accepts connections and never replies. */
export async function listenInSilence(t: Test): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createSocketServer((socket) => {
    socket.on('error', () => undefined);
    sockets.add(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}
