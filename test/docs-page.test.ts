import type { AddressInfo } from 'node:net';
import { startService } from './support/app.ts';
import { openPage } from './support/browser.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

/** Operations that need only a token. */
const simple = [
  'GET /v1/rows',
  'GET /v1/keys',
  'GET /v1/partners',
  'GET /v1/webhooks',
  'GET /v1/history',
  'GET /v1/organization',
  'GET /v1/access-tokens',
  'GET /v1/recovery-requests',
  'GET /v1/rate-limit',
  'POST /v1/keys',
];

t.test(
  'an admin tries out operations at /docs, and each one succeeds',
  { skip: unlessInstalled('chromium') },
  async (t) => {
    const { app, admin } = await startService(t);
    await app.listen({ port: 0, host: '127.0.0.1' });
    const origin = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`;
    const page = await openPage(t, `${origin}/docs`);
    await page.until(`document.querySelector('.opblock') !== null`);

    t.equal(await page.evaluate('document.title'), 'Latchkey API');
    const logo = `getComputedStyle(document.querySelector('.info .title'), '::before').backgroundImage`;
    t.match(await page.evaluate(logo), /latchkey\.svg/, 'our own logo is shown');
    t.equal(await page.evaluate(`document.querySelector('.topbar')`), null, 'no bar loads another document');
    t.match(
      await page.evaluate(`document.querySelector('.info .description').innerText`),
      /credentials\.json.*bootstrap/s,
    );

    await page.evaluate(`document.querySelector('.btn.authorize').click()`);
    await page.until(`document.querySelector('.modal-ux input[aria-label="auth-bearer-value"]') !== null`);
    await page.evaluate(`${typeInto('.modal-ux input[aria-label="auth-bearer-value"]', admin.token)};
    document.querySelector('.modal-ux input[aria-label="auth-bearer-value"]').closest('form').querySelector('.authorize').click();
    document.querySelector('.modal-ux .close-modal').click()`);

    for (const operation of simple) {
      const [method = '', path = ''] = operation.split(' ');
      const block = `[...document.querySelectorAll('.opblock-${method.toLowerCase()}')].find((block) =>
      block.querySelector('[data-path]').dataset.path === ${JSON.stringify(path)})`;
      await page.evaluate(`${block}.querySelector('.opblock-summary-control').click()`);
      await page.until(`${block}.querySelector('.try-out__btn') !== null`);
      await page.evaluate(`${block}.querySelector('.try-out__btn').click()`);
      await page.until(`${block}.querySelector('.execute') !== null`);
      await page.evaluate(`${block}.querySelector('.execute').click()`);
      const status = await page.until(
        `${block}.querySelector('.live-responses-table tbody .response-col_status')?.innerText`,
      );
      t.match(status, /^20[01]/, `${operation} ${status}`);
    }

    t.same(page.errors, [], 'the console has no error');
    const foreign = page.requested.filter(
      (url) => !url.startsWith(origin) && !url.startsWith('data:') && url !== 'about:blank',
    );
    t.same(foreign, [], 'nothing is requested from elsewhere');
    t.ok(page.requested.includes(`${origin}/docs/static/theme/latchkey.svg`));
  },
);

/** React notices a new value only by its own event. */
function typeInto(selector: string, text: string): string {
  return `{ const input = document.querySelector(${JSON.stringify(selector)});
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, ${JSON.stringify(text)});
    input.dispatchEvent(new Event('input', { bubbles: true })) }`;
}
