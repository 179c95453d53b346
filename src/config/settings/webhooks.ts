import { boolean, networks } from '../../lib/config-forms.ts';

/** Where webhooks may be sent. */
export const webhooksSettings = {
  WEBHOOK_ALLOW_HTTP: boolean.default(false).meta({
    description: 'Allow webhook URLs with http:// as well as https://.',
    example: 'true',
  }),
  WEBHOOK_ALLOW_CIDRS: networks.optional().meta({
    description: 'Private networks to which webhooks may be sent, separated by commas. Not set: none.',
    example: '10.20.0.0/16,fd00::/8',
  }),
};
