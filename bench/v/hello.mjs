import fastify from 'fastify';
const app = fastify();
app.get('/readyz', { config: { permission: 'none' } }, async () => ({}));
const { LATCHKEY_URL: url, LATCHKEY_TOKEN: token, D } = process.env;
const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
const body = JSON.stringify({ entries: [{ key: 'lk_k_x', permission: 'read', cost: 1 }] });
if (D === 'fetch' || D === 'http' || D === 'httponly') {
  const http = await import('node:http');
  http.request(new URL(url + '/v1/changes'), { agent: false, headers: { ...headers, accept: 'text/event-stream' } }, async (r) => { r.setEncoding('utf8'); for await (const c of r); }).end();
  const agent = new http.Agent({ keepAlive: true });
  if (D === 'fetch') setInterval(async () => { const r = await fetch(url + '/v1/verify/batch', { method: 'POST', headers, body, signal: AbortSignal.timeout(2000) }); await r.text(); }, 250);
  else if (D === 'http') setInterval(() => { const q = http.request(new URL(url + '/v1/verify/batch'), { agent, method: 'POST', headers }, (r) => { r.setEncoding('utf8'); let t = ''; r.on('data', (c) => { t += c; }); r.on('end', () => {}); }); q.end(body); }, 250);
} else if (D === 'und') {
  const { Client } = await import('/tmp/h/und/node_modules/undici/index.js');
  const c = new Client(url, { pipelining: 1, bodyTimeout: 0 });
  const s = new Client(url, { pipelining: 1, bodyTimeout: 0 });
  const handler = { onConnect() {}, onHeaders() { return true; }, onData() { return true; }, onComplete() {}, onError(e) { console.error(e); } };
  s.dispatch({ path: '/v1/changes', method: 'GET', headers: { ...headers, accept: 'text/event-stream' } }, handler);
  setInterval(() => c.dispatch({ path: '/v1/verify/batch', method: 'POST', headers, body }, handler), 250);
} else if (D === 'worker') {
  const { Worker } = await import('node:worker_threads');
  new Worker(`import('node:http').then((http) => { http.request(new URL('${url}/v1/changes'), { agent: false, headers: ${JSON.stringify({ ...headers, accept: 'text/event-stream' })} }, async (r) => { r.setEncoding('utf8'); for await (const c of r); }).end(); setInterval(async () => { const r = await fetch('${url}/v1/verify/batch', { method: 'POST', headers: ${JSON.stringify(headers)}, body: ${JSON.stringify(body)} }); await r.text(); }, 250); });`, { eval: true });
} else if (D) { const { latchkey } = await import(`/work/main/${D}/src/fastify/plugin.js`); await app.register(latchkey, { url, token }); }
app.get('/hello', async () => ({ hello: 'world' }));
process.on('SIGTERM', () => process.exit(0));
await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
