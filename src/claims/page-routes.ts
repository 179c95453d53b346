import { createHash } from 'node:crypto';
import type { FastifyPluginAsyncZod } from 'fastify-type-provider-zod';
import { z } from 'zod';
import { pageHtml, pageScript, pageStyle } from './page.ts';

const hashSource = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** Nothing but the page's own script and style runs, and nothing is requested from elsewhere. */
const contentSecurityPolicy = [
  "default-src 'none'",
  `script-src ${hashSource(pageScript)}`,
  `style-src ${hashSource(pageStyle)}`,
  "connect-src 'self'",
  'img-src data:',
  "form-action 'none'",
  "frame-ancestors 'none'",
  "base-uri 'none'",
].join('; ');

const headers = {
  'content-security-policy': contentSecurityPolicy,
  'cross-origin-opener-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-robots-tag': 'noindex, nofollow',
};

/** Serves the page where people redeem a code. Link previews fetch the page too, so serving it changes nothing. */
export const claimPageRoutes: FastifyPluginAsyncZod = async (app) => {
  const bytes = Buffer.from(pageHtml);
  app.get(
    '/claim',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'getClaimPage',
        tags: ['Claims'],
        summary: 'Get the page where a code is redeemed by a click',
        description: 'An HTML page. It reads the code from the fragment of its URL, which browsers do not send.',
        // Mail programs add parameters to links.
        querystring: z.looseObject({}),
        produces: ['text/html'],
        response: { 200: z.string().meta({ example: '<!doctype html>…' }) },
      },
    },
    async (_request, reply) =>
      reply
        .headers(headers)
        .type('text/html; charset=utf-8')
        .send(bytes as never),
  );
};
