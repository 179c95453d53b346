import fastify from 'fastify';
import pg from 'pg';
import { mintToken } from '../src/crypto/token.ts';
import { Problem } from '../src/domain/errors.ts';
import { idSuffix, newId } from '../src/domain/ids.ts';
import { errorHandler } from '../src/http/error-handler.ts';
import { strictRoutes } from '../src/http/strict-routes.ts';
import { createLogger } from '../src/service/logger.ts';
import { startService } from './support/app.ts';
import { dbQuery } from './support/database.ts';
import { compiled, run } from './support/process.ts';
import { t } from './support/tap.ts';

t.test('tokens are masked anywhere in a log line', async (t) => {
  const lines: string[] = [];
  const logger = createLogger({
    level: 'trace',
    tokenPrefix: 'acme',
    destination: { write: (line) => void lines.push(line) },
  });
  const token = mintToken({ prefix: 'acme', kind: 'k', idSuffix: idSuffix(newId('key')) }).reveal();
  const secret = token.slice(-49, -6);
  logger.info({ deep: { list: [token] }, url: `/v1/keys?key=${token}` }, `a message with ${token}`);
  logger.error({ err: new Error(`failed for ${token}`, { cause: new Error(token) }) });
  logger.info({ signing: `whsec_${secret}+/=` }, `signed with whsec_${secret}`);
  logger.child({ bound: token }).warn({ authorization: `Bearer ${token}` });
  t.equal(lines.length, 4);
  for (const line of lines) {
    t.notMatch(line, secret);
    t.ok(JSON.parse(line), 'a line stays JSON');
  }
  t.match(lines[0], 'acme_k_…');
});

t.test("an error's row contents stay out of the log", async (t) => {
  const lines: string[] = [];
  const logger = createLogger({
    level: 'trace',
    tokenPrefix: 'lk',
    destination: { write: (line) => void lines.push(line) },
  });
  const error = new pg.DatabaseError('new row violates check constraint', 10, 'error');
  Object.assign(error, { code: '23514', constraint: 'two_slots', detail: 'Failing row contains ($argon2id$v=19…)' });
  logger.error({ err: new Error('outer', { cause: error }) });
  t.notMatch(lines[0], 'argon2id');
  t.match(JSON.parse(lines[0] ?? ''), { err: { message: 'outer', cause: { code: '23514', constraint: 'two_slots' } } });
});

t.test('each reply has one log line with caller, route and result, and no request content', async (t) => {
  const { admin, logLines } = await startService(t);
  logLines.length = 0;
  const { headers } = await admin.post('/v1/keys?', { name: 'A confidential name' });
  const lines = logLines.map((line) => JSON.parse(line)).filter((line) => line.msg === 'request');
  t.equal(lines.length, 1);
  t.match(lines[0], {
    method: 'POST',
    path: '/v1/keys',
    status: 201,
    callerId: /^token_/,
    reqId: headers['x-request-id'],
  });
  t.notMatch(logLines.join(''), 'business');
});

t.test("the level of a reply's log line depends on its status", async (t) => {
  const { app, admin, urls, logLines } = await startService(t);
  const levelOf = async (send: () => Promise<unknown>) => {
    logLines.length = 0;
    await send();
    const lines = logLines.map((line) => JSON.parse(line)).filter((line) => line.msg === 'request');
    t.equal(lines.length, 1);
    return lines[0]?.level;
  };
  t.equal(await levelOf(() => admin.get('/v1/keys')), 30);
  t.equal(await levelOf(() => app.inject('/nothing')), 40);
  await dbQuery(urls.superuser, 'alter table api_keys rename to api_keys_away');
  t.equal(await levelOf(() => admin.get('/v1/keys')), 50);
  await dbQuery(urls.superuser, 'alter table api_keys_away rename to api_keys');
});

t.test('logs are readable text on a terminal or if configured, otherwise JSON', async (t) => {
  const script = `
    const { createLogger } = await import('${compiled('src/service/logger.ts')}');
    const format = process.env.FORMAT === '' ? undefined : process.env.FORMAT;
    if (process.env.TERMINAL === 'yes') process.stdout.isTTY = true;
    createLogger({ level: 'info', tokenPrefix: 'lk', format }).info({ port: 1 }, 'It is up.');`;
  const output = async (env: Record<string, string>) => {
    const child = run(t, process.execPath, ['--input-type=module', '-e', script], { env });
    await child.until(/It is up/);
    await child.exited;
    return child.stdout();
  };
  t.match(JSON.parse(await output({ FORMAT: '' })), { msg: 'It is up.', port: 1 });
  t.match(JSON.parse(await output({ FORMAT: 'json', TERMINAL: 'yes' })), { msg: 'It is up.' });
  for (const env of [{ FORMAT: '', TERMINAL: 'yes' }, { FORMAT: 'pretty' }]) {
    const text = await output(env);
    t.match(text, /INFO.*It is up\.[\s\S]*port/);
    t.notMatch(text, '"msg"');
  }
});

t.test(
  'a rejection without a cause is a warning without a stack, one with a cause is an error with a stack',
  async (t) => {
    const lines: string[] = [];
    const destination = { write: (line: string) => void lines.push(line) };
    const app = fastify({ loggerInstance: createLogger({ level: 'warn', tokenPrefix: 'lk', destination }) });
    app.setValidatorCompiler(() => () => true);
    app.setSerializerCompiler(() => JSON.stringify);
    await app.register(strictRoutes, { tokenPrefix: 'lk' });
    await app.register(errorHandler, { translate: () => undefined });
    const config = { access: 'public' as const };
    const schema = { response: { 200: {} } };
    app.get('/stopping', { config, schema }, () => {
      throw new Problem('unavailable', 'The service is stopping.');
    });
    app.get('/broken', { config, schema }, () => {
      throw new Problem('unavailable', 'The database is away.', { cause: new Error('ECONNREFUSED') });
    });
    for (const url of ['/stopping', '/broken']) t.equal((await app.inject(url)).statusCode, 503);
    const [stopping, broken] = lines.map((line) => JSON.parse(line));
    t.match(stopping, { level: 40, code: 'unavailable', err: undefined, msg: 'The service is stopping.' });
    t.match(broken, { level: 50, err: { message: 'ECONNREFUSED', stack: /./ } });
  },
);
