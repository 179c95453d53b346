import { spawnSync } from 'node:child_process';
import { createServer, request as httpRequest } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { type Json, startService, type TestService } from './support/app.ts';
import { openPage, type Page } from './support/browser.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

const skip = unlessInstalled('chromium');

async function listen(t: Test, overrides: Parameters<typeof startService>[1] = {}) {
  const service = await startService(t, overrides);
  await service.app.listen({ port: 0, host: '127.0.0.1' });
  return { service, origin: `http://127.0.0.1:${(service.app.server.address() as AddressInfo).port}` };
}

const newClaim = async ({ admin }: TestService): Promise<Json> =>
  (await admin.post('/v1/claims', { newKey: {}, ttlSeconds: 3_600 })).body;

const statusOf = async ({ admin }: TestService, claim: Json): Promise<string> =>
  (await admin.get(`/v1/claims/${claim.id}`)).body.status;

/** The heading of the section that is shown. */
const heading = `[...document.querySelectorAll('h1')].find((h1) => h1.offsetParent !== null)?.textContent`;
const headingIs = (page: Page, text: string) => page.until(`${heading} === ${JSON.stringify(text)}`);

const ready = 'An API key is ready for you';
const gone = 'This link no longer works';
const shown = 'Save this key now';

/** Requests of pages that are not to the service itself. */
const foreign = (page: Page, origin: string) =>
  page.requested.filter((url) => !url.startsWith(`${origin}/`) && !url.startsWith('data:') && url !== 'about:blank');

t.test(
  'the page fetches nothing by itself; a key press shows the key once, and a reload does not',
  { skip },
  async (t) => {
    const { service, origin } = await listen(t);
    const claim = await newClaim(service);
    for (const method of ['HEAD', 'GET'] as const)
      t.equal((await fetch(`${origin}/claim?utm_source=mail`, { method })).status, 200);
    const page = await openPage(t, `${origin}/claim#${claim.code}`);
    await headingIs(page, ready);
    t.equal(await statusOf(service, claim), 'pending', 'opening the page redeems nothing');
    t.equal(await page.evaluate('document.title'), 'Your API key');

    await page.press('Tab');
    t.equal(await page.evaluate('document.activeElement.id'), 'redeem', 'the button is the first stop of the Tab key');
    t.not(await page.evaluate(`getComputedStyle(document.activeElement).outlineStyle`), 'none', 'focus is visible');
    await page.press('Enter');
    await headingIs(page, shown);
    t.equal(await statusOf(service, claim), 'redeemed');
    const key = await page.evaluate(`document.getElementById('key').value`);
    t.match((await service.verifier.post('/v1/verify', { key, permission: 'read' })).body, {
      valid: true,
      keyId: claim.keyId,
    });
    t.equal(await page.evaluate('document.activeElement.id'), 'result-title', 'focus is at the result');
    t.equal(await page.evaluate('location.hash'), '', 'the code has left the address');
    t.match(
      await page.evaluate(`document.getElementById('facts').innerText`),
      /From\s+Organization.*Permission\s+read and write/s,
    );

    const nodes = (await page.accessibility()).map(({ role, name }) => `${role}: ${name}`);
    for (const node of ['heading: Save this key now', 'textbox: API key', 'button: Copy the key']) {
      t.ok(nodes.includes(node), `${node} is read out, of ${nodes.join(', ')}`);
    }
    t.ok(
      nodes.some((node) => node.startsWith('status')),
      'messages are in a live region',
    );

    await page.evaluate('location.reload()');
    await headingIs(page, 'The key was already shown');
    t.equal(await page.evaluate(`document.getElementById('key').value`), '');
    t.same(foreign(page, origin), [], 'nothing is requested from elsewhere');
    t.same(
      page.requested.filter((url) => url.includes(claim.code.slice(-20)) && !url.includes('#')),
      [],
    );
    t.same(page.errors, [], 'the console has no error, and the policy blocks nothing');
  },
);

t.test('the key is copied, or selected where the browser does not allow that', { skip }, async (t) => {
  const { service, origin } = await listen(t);
  const claim = await newClaim(service);
  const page = await openPage(t, `${origin}/claim#${claim.code}`);
  await headingIs(page, ready);
  await page.evaluate(`document.getElementById('redeem').click()`);
  await headingIs(page, shown);
  const allow = (write: string) =>
    page.evaluate(
      `Object.defineProperty(navigator, 'clipboard', { configurable: true, value: { writeText: ${write} } })`,
    );
  await allow('async (text) => { window.copied = text; }');
  await page.press('Tab');
  await page.press('Tab');
  t.equal(await page.evaluate('document.activeElement.id'), 'copy');
  await page.press('Enter');
  await page.until(`document.getElementById('said').textContent === 'The key was copied.'`);
  t.ok(
    await page.evaluate(`window.copied === document.getElementById('key').value && window.copied.startsWith('lk_k_')`),
  );

  await allow(`async () => { throw new Error('not allowed'); }`);
  await page.evaluate(`document.getElementById('copy').click()`);
  await page.until(`document.getElementById('said').textContent.startsWith('The key is selected')`);
  t.ok(
    await page.evaluate(`(() => { const { value, selectionStart, selectionEnd } = document.activeElement;
      return value.slice(selectionStart, selectionEnd) === document.getElementById('key').value; })()`),
  );
});

t.test('of two tabs with the same link one shows the key, and the other says that it is gone', { skip }, async (t) => {
  const { service, origin } = await listen(t);
  const claim = await newClaim(service);
  const tabs = [await openPage(t, `${origin}/claim#${claim.code}`), await openPage(t, `${origin}/claim#${claim.code}`)];
  for (const tab of tabs) await headingIs(tab, ready);
  await Promise.all(tabs.map((tab) => tab.evaluate(`document.getElementById('redeem').click()`)));
  const ends = await Promise.all(tabs.map((tab) => tab.until(`${heading} !== ${JSON.stringify(ready)} && ${heading}`)));
  t.same(ends.sort(), [shown, gone].sort());
});

t.test('each failure has its own text, and leaves the link as it is unless it is gone', { skip }, async (t) => {
  const { service, origin } = await listen(t, { limits: { callerLimit: 1_000, addressLimit: 1, revealLimit: 1 } });
  const empty = await openPage(t, `${origin}/claim`);
  await headingIs(empty, 'There is no code in this link');

  const claim = await newClaim(service);
  const page = await openPage(t, `${origin}/claim#${claim.code}`);
  await headingIs(page, ready);
  const press = () => page.evaluate(`document.getElementById('redeem').click()`);
  const trouble = (text: string) =>
    page.until(`document.getElementById('trouble').textContent.includes(${JSON.stringify(text)})`);
  await page.offline(true);
  await press();
  await trouble('could not be reached');
  t.equal(await page.evaluate('location.hash'), `#${claim.code}`);
  t.equal(await page.evaluate('document.activeElement.id'), 'redeem', 'the button can be pressed again at once');
  await page.offline(false);

  await fetch(`${origin}/v1/claims/redeem`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"code":"nonsense"}',
  });
  await page.evaluate(`location.hash = 'nonsense'`);
  await press();
  await trouble('There were too many tries from your network. Try again in ');
  await page.evaluate(`location.hash = ${JSON.stringify(claim.code)}`);
  await page.until(`document.getElementById('trouble').textContent === ''`);
  await press();
  await headingIs(page, shown);

  await page.evaluate(`location.hash = ${JSON.stringify(claim.code)}`);
  await headingIs(page, ready);
  t.equal(
    await page.evaluate(`document.getElementById('key').value`),
    '',
    'another link in the same tab hides the key',
  );
});

t.test('a link that no longer works says so, also after a reload', { skip }, async (t) => {
  const { service, origin } = await listen(t);
  const claim = await newClaim(service);
  await service.admin.delete(`/v1/claims/${claim.id}`);
  const page = await openPage(t, `${origin}/claim#${claim.code}`);
  await headingIs(page, ready);
  await page.evaluate(`document.getElementById('redeem').click()`);
  await headingIs(page, gone);
  t.equal(await page.evaluate('document.activeElement.id'), 'end-title', 'focus is at the message');
  await page.evaluate('location.reload()');
  await headingIs(page, gone);
});

t.test('the page works under the path prefix of PUBLIC_URL', { skip }, async (t) => {
  const { service, origin } = await listen(t, { publicUrl: 'http://keys.example.com/latchkey' });
  const proxy = createServer((request, response) => {
    const path = request.url ?? '';
    if (!path.startsWith('/latchkey/')) {
      response.writeHead(404).end();
      return;
    }
    const { method, headers } = request;
    const passed = httpRequest(`${origin}${path.slice('/latchkey'.length)}`, { method, headers }, (reply) => {
      response.writeHead(reply.statusCode ?? 502, reply.headers);
      reply.pipe(response);
    });
    request.pipe(passed);
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  t.teardown(() => proxy.close());
  const claim = await newClaim(service);
  const url = new URL(claim.url);
  const front = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const page = await openPage(t, `${front}${url.pathname}${url.hash}`);
  await headingIs(page, ready);
  await page.evaluate(`document.getElementById('redeem').click()`);
  await headingIs(page, shown);
  t.same(page.errors, []);
  proxy.closeAllConnections();
});

t.test('the page is readable in a dark browser', { skip }, async (t) => {
  const { origin } = await listen(t);
  const page = await openPage(t, `${origin}/claim`);
  const ground = () => page.evaluate('getComputedStyle(document.body).backgroundColor');
  await page.prefers('light');
  const light = await ground();
  await page.prefers('dark');
  t.not(await ground(), light);
});

t.test('the headers of the page forbid everything that it does not need', async (t) => {
  const { app } = await startService(t);
  const { headers, body } = await app.inject('/claim');
  const policy = String(headers['content-security-policy']);
  for (const rule of [
    "default-src 'none'",
    "connect-src 'self'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
  ]) {
    t.ok(policy.split('; ').includes(rule), rule);
  }
  t.notMatch(policy, /unsafe|\*|https?:/);
  t.match(headers, {
    'cross-origin-opener-policy': 'same-origin',
    'referrer-policy': 'no-referrer',
    'x-robots-tag': /noindex/,
    'cache-control': 'no-store',
  });
  t.notMatch(body, /https?:\/\//, 'the page names no other address');
});

t.test('the script of the page is valid JavaScript', async (t) => {
  const { app } = await startService(t);
  const script = /<script>(.*)<\/script>/s.exec((await app.inject('/claim')).body)?.[1] ?? '';
  t.equal(spawnSync(process.execPath, ['--check', '-'], { input: script }).status, 0);
});
