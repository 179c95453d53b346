import { latchkey } from '@latchkey/client/express';
import express from 'express';

// A list of issues in memory. A key with read lists them; a key with write creates them.

const { LATCHKEY_URL = 'http://127.0.0.1:8080', LATCHKEY_TOKEN, PORT = '3000' } = process.env;
if (LATCHKEY_TOKEN === undefined) throw new Error("LATCHKEY_TOKEN must be a verifier's token");

const issues = [{ id: 1, title: 'The door squeaks', createdBy: null }];
const needsKey = latchkey({ url: LATCHKEY_URL, token: LATCHKEY_TOKEN });

const app = express();

// Health checks send no key.
app.get('/health', (_request, response) => response.json({ ok: true }));

// This POST only reads, so it overrides the default.
app.post('/issues/search', needsKey.needing({ permission: 'read' }), express.json(), (request, response) => {
  const text = String(request.body?.text ?? '').toLowerCase();
  response.json({ data: issues.filter(({ title }) => title.toLowerCase().includes(text)) });
});

// By default, GET requires the permission read and POST requires write.
app.use(needsKey);
app.get('/issues', (_request, response) => response.json({ data: issues }));
app.post('/issues', express.json(), (request, response) => {
  const { title } = request.body ?? {};
  if (typeof title !== 'string' || title === '') return response.status(400).json({ detail: 'title must be a text' });
  const issue = { id: issues.length + 1, title, createdBy: request.apiKey.id };
  issues.push(issue);
  response.status(201).location(`/issues/${issue.id}`).json(issue);
});

const server = app.listen(Number(PORT), '127.0.0.1', () => console.log(`Listening on http://127.0.0.1:${PORT}`));
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    server.close();
    server.closeAllConnections();
    needsKey.close();
  });
}
