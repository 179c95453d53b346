import { latchkey } from '@latchkey/client/fastify';
import fastify from 'fastify';

// A list of issues in memory. A key with read lists them; a key with write creates them.

const issues = [{ id: 1, title: 'The door squeaks', createdBy: null }];

export async function buildApp({ latchkeyUrl, latchkeyToken, logger = false }) {
  const app = fastify({ logger });

  await app.register(latchkey, { url: latchkeyUrl, token: latchkeyToken });

  // By default, GET requires the permission read and POST requires write.
  app.get('/issues', async () => ({ data: issues }));

  app.post(
    '/issues',
    {
      schema: {
        body: {
          type: 'object',
          required: ['title'],
          additionalProperties: false,
          properties: { title: { type: 'string', minLength: 1, maxLength: 200 } },
        },
      },
    },
    async (request, reply) => {
      const issue = { id: issues.length + 1, title: request.body.title, createdBy: request.apiKey.id };
      issues.push(issue);
      reply.code(201).header('location', `/issues/${issue.id}`);
      return issue;
    },
  );

  // This POST only reads, so it overrides the default.
  app.post('/issues/search', { config: { permission: 'read' } }, async (request) => {
    const text = String(request.body?.text ?? '').toLowerCase();
    return { data: issues.filter(({ title }) => title.toLowerCase().includes(text)) };
  });

  // Health checks send no key.
  app.get('/health', { config: { permission: 'none' } }, async () => ({ ok: true }));

  return app;
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  const { LATCHKEY_URL = 'http://127.0.0.1:8080', LATCHKEY_TOKEN, PORT = '3000' } = process.env;
  if (LATCHKEY_TOKEN === undefined) throw new Error("LATCHKEY_TOKEN must be a verifier's token");
  const app = await buildApp({ latchkeyUrl: LATCHKEY_URL, latchkeyToken: LATCHKEY_TOKEN, logger: true });
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => app.close());
  await app.listen({ host: '127.0.0.1', port: Number(PORT) });
}
