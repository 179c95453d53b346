import { serve } from '@hono/node-server';
import { getConnInfo } from '@hono/node-server/conninfo';
import { latchkey } from '@latchkey/client/fetch';
import { Hono } from 'hono';
import { createMiddleware } from 'hono/factory';

// A list of issues in memory. A key with read lists them; a key with write creates them.

const { LATCHKEY_URL = 'http://127.0.0.1:8080', LATCHKEY_TOKEN, PORT = '3000' } = process.env;
if (LATCHKEY_TOKEN === undefined) throw new Error("LATCHKEY_TOKEN must be a verifier's token");

const issues = [{ id: 1, title: 'The door squeaks', createdBy: null }];
const keys = latchkey({ url: LATCHKEY_URL, token: LATCHKEY_TOKEN });

const needsKey = (needs) =>
  createMiddleware(async (context, next) => {
    const ip = getConnInfo(context).remote.address;
    const { apiKey, response } = await keys.check(context.req.raw, { ...needs, ip });
    if (response !== undefined) return response;
    context.set('apiKey', apiKey);
    await next();
  });

const app = new Hono();

// Health checks send no key.
app.get('/health', (context) => context.json({ ok: true }));

// This POST only reads, so it overrides the default.
app.post('/issues/search', needsKey({ permission: 'read' }), async (context) => {
  const text = String((await context.req.json()).text ?? '').toLowerCase();
  return context.json({ data: issues.filter(({ title }) => title.toLowerCase().includes(text)) });
});

// By default, GET requires the permission read and POST requires write.
app.use(needsKey());
app.get('/issues', (context) => context.json({ data: issues }));
app.post('/issues', async (context) => {
  const { title } = await context.req.json().catch(() => ({}));
  if (typeof title !== 'string' || title === '') return context.json({ detail: 'title must be a text' }, 400);
  const issue = { id: issues.length + 1, title, createdBy: context.get('apiKey').id };
  issues.push(issue);
  return context.json(issue, 201, { location: `/issues/${issue.id}` });
});

const server = serve({ fetch: app.fetch, hostname: '127.0.0.1', port: Number(PORT) }, ({ port }) =>
  console.log(`Listening on http://127.0.0.1:${port}`),
);
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    server.close();
    server.closeAllConnections();
    keys.close();
  });
}
