import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { describeApi } from '../describe-api.ts';

export function openApiCommand(): Command {
  return new Command('openapi')
    .description('print the OpenAPI document, made from the routes; needs no database')
    .option('--write <file>', 'write it to a file instead')
    .action(async (options: { write?: string }) => {
      const text = await describeApi();
      if (options.write === undefined) process.stdout.write(text);
      else await writeFile(options.write, text);
    });
}
