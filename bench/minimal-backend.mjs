import fastify from 'fastify';

// The smallest backend, for a comparison with itself: protected by the hook if it gets the URL of a Latchkey.

const app = fastify();
app.get('/readyz', { config: { permission: 'none' } }, async () => ({}));
const { LATCHKEY_URL: url, LATCHKEY_TOKEN: token } = process.env;
if (url !== undefined && token !== undefined) {
  // What is built: that is what backends run.
  const { latchkey } = await import('../dist/src/fastify/plugin.js');
  await app.register(latchkey, { url, token });
}
app.get('/hello', async () => ({ hello: 'world' }));
process.on('SIGTERM', () => process.exit(0));
await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
