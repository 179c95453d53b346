import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import t from 'tap';

// What the pages promise about this repository: that a link leads somewhere, and that a test is there.

const pages = [
  ...readdirSync('.'),
  ...readdirSync('docs', { recursive: true, encoding: 'utf8' }).map((name) => `docs/${name}`),
]
  .filter((name) => name.endsWith('.md'))
  .sort();

t.test('every link inside the repository leads to a page and its heading', async (t) => {
  t.ok(pages.includes('README.md') && pages.includes('docs/asvs.md') && pages.length > 15, `${pages.length} pages`);
  for (const page of pages) {
    for (const { target, file, heading } of linksOf(page)) {
      t.ok(existsSync(file), `${page} links to ${target}`);
      if (heading === undefined || !file.endsWith('.md')) continue;
      t.ok(headingsOf(file).includes(heading), `${page} links to ${target}`);
    }
  }
});

t.test('every page can be found from the README', async (t) => {
  const found = new Set(['README.md']);
  for (const page of found) for (const { file } of linksOf(page)) if (file.endsWith('.md')) found.add(file);
  t.same(
    pages.filter((page) => !found.has(page)),
    [],
  );
});

interface Link {
  target: string;
  file: string;
  heading: string | undefined;
}

/** Links that name no host. A table of contents of its own is a link to the same page. */
function linksOf(page: string): Link[] {
  const text = readFileSync(page, 'utf8').replaceAll(/^```.*?^```$/gms, '');
  return [...text.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = '']) => target)
    .filter((target) => !/^[a-z]+:/.test(target))
    .map((target) => {
      const [name = '', heading] = target.split('#');
      return { target, file: name === '' ? page : path.posix.join(path.posix.dirname(page), name), heading };
    });
}

/** The anchors that readers of Markdown make of headings. */
function headingsOf(page: string): string[] {
  const text = readFileSync(page, 'utf8').replaceAll(/^```.*?^```$/gms, '');
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

const rows = readFileSync('docs/asvs.md', 'utf8')
  .split('\n')
  .filter((line) => /^\| \d/.test(line))
  .map((line) => line.split('|').map((cell) => cell.trim()))
  .map(([, number = '', , state = '', how = '']) => ({ number, state, how }));

t.test('each requirement of docs/asvs.md is there once, in order, with a state', async (t) => {
  const numbers = rows.map(({ number }) => number);
  const inOrder = [...new Set(numbers)].sort((one, other) => {
    const [a = [], b = []] = [one, other].map((number) => number.split('.').map(Number));
    return a.map((part, at) => part - (b[at] ?? 0)).find((difference) => difference !== 0) ?? 0;
  });
  t.same(numbers, inOrder);
  for (const { number, state, how } of rows) {
    t.match(state, /^(met|partly|not|yours)$/, number);
    t.ok(how.length > 10, `${number} says how`);
  }
});

t.test('each test that docs/asvs.md names is there', async (t) => {
  let named = 0;
  for (const { number, how } of rows) {
    for (const [, file = ''] of how.matchAll(/`([\w-]+\.test\.ts)`/g)) {
      t.ok(existsSync(`test/${file}`), `${number}: ${file}`);
    }
    for (const [, file = '', rest = ''] of how.matchAll(/`([\w-]+\.test\.ts)`: ((?:(?!\. `|\. [A-Z]).)+)/g)) {
      const name = rest.replace(/\.$/, '');
      named += 1;
      const text = readFileSync(`test/${file}`, 'utf8');
      const isThere = ["'", '"', '`'].some((quote) => text.includes(`${quote}${name}${quote}`));
      t.ok(isThere, `${number}: test/${file} has «${name}»`);
    }
  }
  t.ok(named > 50, `${named} tests are named`);
});

t.test('each test file that docs/security-model.md names is there', async (t) => {
  const named = [...readFileSync('docs/security-model.md', 'utf8').matchAll(/`([\w-]+\.test\.ts)`/g)];
  t.ok(named.length > 30, `${named.length} are named`);
  for (const [, file = ''] of named) t.ok(existsSync(`test/${file}`), file);
});
