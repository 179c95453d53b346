import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { describeApi } from '../describe-api.ts';
import { toMarkdown } from '../http/openapi-markdown.ts';

export function openApiCommand(): Command {
  return new Command('openapi')
    .description('print the OpenAPI document, made from the routes; needs no database')
    .option('--markdown', 'as a page for people')
    .option('--write <file>', 'write it to a file instead')
    .action(async (options: { write?: string; markdown?: true }) => {
      const json = await describeApi();
      const text = options.markdown ? toMarkdown(JSON.parse(json)) : json;
      if (options.write === undefined) process.stdout.write(text);
      else await writeFile(options.write, text);
    });
}
