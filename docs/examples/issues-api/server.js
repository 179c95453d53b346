import fastify from 'fastify';
import { latchkey } from 'latchkey/fastify';

// Issues, in memory. A key that may read lists them, a key that may write creates them.

const issues = [{ id: 1, title: 'The door squeaks', createdBy: null }];

export async function buildApp({ latchkeyUrl, latchkeyToken, logger = false }) {
  const app = fastify({ logger });

  await app.register(latchkey, { url: latchkeyUrl, token: latchkeyToken });

  // The next two need no configuration: GET needs the permission read, POST needs write.
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

  // A search is a POST that only reads.
  app.post('/issues/search', { config: { permission: 'read' } }, async (request) => {
    const text = String(request.body?.text ?? '').toLowerCase();
    return { data: issues.filter(({ title }) => title.toLowerCase().includes(text)) };
  });

  // For health checks, which send no key.
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
