import { writeFile } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { readOpenApi } from '../lib/package.ts';

export function openApiCommand(): Command {
  return new Command('openapi')
    .description('print the OpenAPI document; needs no database')
    .addOption(new Option('--as <form>', 'the OpenAPI version').choices(['3.1', '3.0']).default('3.1'))
    .option('--write <file>', 'write it to a file instead')
    .action(async ({ as, write }: { write?: string; as: '3.1' | '3.0' }) => {
      const text = readOpenApi(as);
      if (write === undefined) process.stdout.write(text);
      else await writeFile(write, text);
    });
}
