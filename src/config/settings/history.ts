import { z } from 'zod';
import { httpUrl, integer } from '../../lib/config-forms.ts';
import { secretFile } from '../secret-files.ts';

/** History checkpoints, usage and deleted rows. */
export const historySettings = {
  UNDO_WINDOW_SECONDS: integer(0, 31_536_000).default(86_400).meta({
    description: 'How long an admin can undo a deletion.',
    example: '86400',
  }),
  RETENTION_SECONDS: integer(0, 315_360_000).default(2_592_000).meta({
    description: 'How long an operator can restore what was deleted. After that it is purged for good.',
    example: '2592000',
  }),
  USAGE_HOURLY_DAYS: integer(1, 3_650).default(35).meta({
    description: 'How many days usage is kept by the hour. Older usage is kept by the day.',
    example: '35',
  }),
  CHECKPOINT_FILE: z.string().optional().meta({
    description:
      'The file to which signed checkpoints of the history are appended, and from which they are read after a restart. Not set: checkpoints are kept only in memory and in the log.',
    example: '/var/lib/latchkey/checkpoints',
  }),
  CHECKPOINT_URL: httpUrl.optional().meta({
    description:
      'The URL to which signed checkpoints are sent by POST, so that a copy is outside of this machine. Not set: none.',
    example: 'https://user:password@archive.example.com/latchkey',
  }),
  CHECKPOINT_URL_FILE: secretFile('CHECKPOINT_URL'),
};
