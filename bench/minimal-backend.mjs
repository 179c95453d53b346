import fastify from 'fastify';

// A minimal backend, which is protected by the hook if LATCHKEY_URL and LATCHKEY_TOKEN are set.

const app = fastify();
app.get('/readyz', { config: { permission: 'none' } }, async () => ({}));
const { LATCHKEY_URL: url, LATCHKEY_TOKEN: token } = process.env;
if (url !== undefined && token !== undefined) {
  // The build, because backends run the build.
  const { latchkey } = await import('../clients/node/dist/clients/node/src/fastify.js');
  await app.register(latchkey, { url, token });
}
app.get('/hello', async () => ({ hello: 'world' }));
process.on('SIGTERM', () => process.exit(0));
await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
