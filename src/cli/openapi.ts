import { writeFile } from 'node:fs/promises';
import { Command, Option } from 'commander';
import { toOpenApi30 } from '../http/openapi-3-0.ts';

const forms = {
  '3.1': (json: string) => json,
  '3.0': (json: string) => `${JSON.stringify(toOpenApi30(JSON.parse(json)), null, 2)}\n`,
};

export function openApiCommand(): Command {
  return new Command('openapi')
    .description('print the OpenAPI document, made from the routes; needs no database')
    .addOption(new Option('--as <form>', 'its form').choices(Object.keys(forms)).default('3.1'))
    .option('--write <file>', 'write it to a file instead')
    .action(async (options: { write?: string; as: keyof typeof forms }) => {
      const { describeApi } = await import('../describe-api.ts');
      const text = forms[options.as](await describeApi());
      if (options.write === undefined) process.stdout.write(text);
      else await writeFile(options.write, text);
    });
}
