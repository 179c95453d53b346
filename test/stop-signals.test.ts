import { readFile } from 'node:fs/promises';
import { compiled, eventually, request, run } from './support/process.ts';
import { unlessInstalled } from './support/programs.ts';
import { serve } from './support/served.ts';
import { t } from './support/tap.ts';

const drain = { DRAIN_SECONDS: '3' };

function linesOf(output: string) {
  // biome-ignore lint/suspicious/noExplicitAny: the members of a line are what the tests are about to assert
  return output.split('\n').flatMap((line): any[] => (line.startsWith('{') ? [JSON.parse(line)] : []));
}

for (const signal of ['SIGHUP', 'SIGTERM', 'SIGINT'] as const) {
  t.test(`${signal} drains the service, ends it with code 0, and logs no error and no probe`, async (t) => {
    const { process: service, url, tokens } = await serve(t, drain);
    t.equal((await request(`${url}/readyz`)).status, 200);
    const before = service.output().length;
    service.child.kill(signal);
    const detail = 'The service is stopping.';
    await eventually(async () => (await request(`${url}/readyz`)).body.detail === detail);
    // A closed terminal may send the signal twice.
    if (signal === 'SIGHUP') service.child.kill(signal);
    t.equal(
      (await request(`${url}/v1/keys`, { token: tokens['adminToken'] ?? '' })).status,
      200,
      'requests are still answered',
    );
    t.same(await service.exited, { code: 0, signal: null });
    const lines = linesOf(service.output().slice(before));
    t.same(
      lines.filter(({ level, err, path }) => level > 30 || err !== undefined || path === '/readyz'),
      [],
      'only info lines, and no probe',
    );
    t.match(
      lines.filter(({ msg }) => msg === 'request'),
      [{ path: '/v1/keys', status: 200, ip: '127.0.0.1' }],
    );
  });
}

t.test("with LOG_LEVEL=debug probes are logged with the client's address", async (t) => {
  const { process: service, url } = await serve(t, { LOG_LEVEL: 'debug', TRUST_PROXY: '127.0.0.1' });
  await fetch(`${url}/livez`, { headers: { 'x-forwarded-for': '203.0.113.9' } });
  await eventually(async () => linesOf(service.output()).some(({ path }) => path === '/livez'));
  t.match(
    linesOf(service.output()).find(({ path }) => path === '/livez'),
    { level: 20, msg: 'request', ip: '203.0.113.9', status: 200 },
  );
});

t.test('the log line of a verification has about the size that docs/operations.md names', async (t) => {
  const { process: service, url, tokens } = await serve(t);
  const { verifierToken: token = '' } = tokens;
  await request(`${url}/v1/verify`, { method: 'POST', token, body: { key: 'x', permission: 'read' } });
  const requestLine = () =>
    service
      .output()
      .split('\n')
      .find((line) => line.includes('"path":"/v1/verify"'));
  const line = await eventually(async () => requestLine());
  const [, bytes = ''] = /line has about (\d+) bytes/.exec(await readFile('docs/operations.md', 'utf8')) ?? [];
  t.ok(Math.abs(line.length / Number(bytes) - 1) < 0.15, `${line.length} bytes`);
});

/** Runs its arguments in a new terminal, and closes the terminal when a line arrives. */
const inTerminal = `
import os, pty, select, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    if select.select([terminal, sys.stdin], [], [])[0] == [sys.stdin]:
        break
    os.write(1, os.read(terminal, 65536))
os.close(terminal)
os.waitpid(pid, 0)
`;

t.test('a closed terminal drains the service', { skip: unlessInstalled('python3') }, async (t) => {
  const env = { LATCHKEY_DATA_DIR: t.testdir(), PORT: '0', ...drain };
  const entry = compiled('src/server.ts');
  const terminal = run(t, 'python3', ['-uc', inTerminal, process.execPath, entry], { env });
  const [, url = ''] = await terminal.until(/Server listening at (http:[/.\w]+:\d+)/);
  terminal.child.stdin?.write('close\n');
  await eventually(async () => (await request(`${url}/readyz`)).body.detail === 'The service is stopping.');
  t.equal((await request(`${url}/livez`)).status, 200);
  t.same(await terminal.exited, { code: 0, signal: null });
});
