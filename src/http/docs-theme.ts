import type { FastifySwaggerUiOptions } from '@fastify/swagger-ui';

const logo = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="6" fill="#1b1b1b"/>
<g fill="none" stroke="#7fd1ae" stroke-width="3" stroke-linecap="round"><circle cx="10" cy="16" r="5"/><path d="M15 16h12M23 16v5M27 16v4"/></g></svg>`;

const styles = `.swagger-ui .info .title::before {
  content: '';
  display: inline-block;
  width: 40px;
  height: 40px;
  margin-right: 12px;
  vertical-align: middle;
  background: url('latchkey.svg') no-repeat;
}
`;

/**
 * The title, logo and layout of /docs. The base layout has no field for the address of another document, and no inline
 * styles, which the page's content security policy blocks.
 */
export const docsTheme: Pick<FastifySwaggerUiOptions, 'logo' | 'theme' | 'uiConfig'> = {
  uiConfig: { deepLinking: true, layout: 'BaseLayout' },
  logo: { type: 'image/svg+xml', content: logo },
  theme: {
    title: 'Latchkey API',
    css: [{ filename: 'latchkey.css', content: styles }],
    favicon: [{ filename: 'latchkey.svg', rel: 'icon', type: 'image/svg+xml', sizes: 'any', content: logo }],
  },
};
