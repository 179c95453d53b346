import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

// What the pages say about this repository: a link leads somewhere, and a test that is named exists.

const pages = [...readdirSync('.'), ...filesIn('docs'), ...filesIn('clients'), 'test/README.md']
  .filter((name) => name.endsWith('.md') && !name.includes('node_modules/'))
  .sort();

function filesIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`);
}

test('every link inside the repository leads to a page and its heading', () => {
  assert.ok(
    pages.includes('README.md') && pages.includes('docs/asvs.md') && pages.length > 15,
    `${pages.length} pages`,
  );
  const broken = pages.flatMap((page) =>
    linksOf(page)
      .filter(({ file, heading }) => !existsSync(file) || !hasHeading(file, heading))
      .map(({ target }) => `${page} links to ${target}`),
  );
  assert.deepEqual(broken, []);
});

test('every page can be found from the README', () => {
  const found = new Set(['README.md']);
  for (const page of found) for (const { file } of linksOf(page)) if (file.endsWith('.md')) found.add(file);
  const lost = pages.filter((page) => !found.has(page));
  assert.deepEqual(lost, []);
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

function hasHeading(file: string, heading: string | undefined): boolean {
  return heading === undefined || !file.endsWith('.md') || headingsOf(file).includes(heading);
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

test('each step of the requests in ARCHITECTURE.md names a function that its file has', () => {
  const text = readFileSync('ARCHITECTURE.md', 'utf8');
  const steps = [...text.matchAll(/\| `([\w/-]+\.ts)` \| `(\w+)` \|/g)];
  const missing = steps.filter(
    ([, file = '', name = '']) => !new RegExp(`\\b${name}\\b`).test(readFileSync(file, 'utf8')),
  );
  assert.deepEqual(
    missing.map(([step]) => step),
    [],
  );
  assert.ok(steps.length > 30, `${steps.length} steps`);
});

test('each file and folder of the code that a page for contributors names exists', () => {
  for (const page of [
    'ARCHITECTURE.md',
    'CONTRIBUTING.md',
    'docs/data-model.md',
    'docs/glossary.md',
    'test/README.md',
  ]) {
    const named = [
      ...readFileSync(page, 'utf8').matchAll(/(?:clients\/node\/)?(?:src|test|tools|lint|migrations)\/[\w./-]*\w/g),
    ];
    const missing = named.map(([name]) => name).filter((name) => !existsSync(name));
    assert.deepEqual(missing, [], page);
  }
});

const rows = readFileSync('docs/asvs.md', 'utf8')
  .split('\n')
  .filter((line) => /^\| \d/.test(line))
  .map((line) => line.split('|').map((cell) => cell.trim()))
  .map(([, number = '', , state = '', how = '']) => ({ number, state, how }));

test('each requirement of docs/asvs.md is there once, in order, with a state', () => {
  const numbers = rows.map(({ number }) => number);
  const inOrder = [...new Set(numbers)].sort((one, other) => {
    const [a = [], b = []] = [one, other].map((number) => number.split('.').map(Number));
    return a.map((part, at) => part - (b[at] ?? 0)).find((difference) => difference !== 0) ?? 0;
  });
  assert.deepEqual(numbers, inOrder);
  for (const { number, state, how } of rows) {
    assert.match(state, /^(met|partly|not|yours)$/, number);
    assert.ok(how.length > 10, `${number} does not say how`);
  }
});

test('each test that docs/asvs.md names exists', () => {
  const named = rows.flatMap(({ number, how }) =>
    [...how.matchAll(/`([\w-]+\.test\.ts)`: ((?:(?!\. `|\. [A-Z]).)+)/g)].map(([, file = '', rest = '']) => {
      return { number, file, name: rest.replace(/\.$/, '') };
    }),
  );
  const missing = named.filter(({ file, name }) => {
    const text = readFileSync(`test/${file}`, 'utf8');
    return !["'", '"', '`'].some((quote) => text.includes(`${quote}${name}${quote}`));
  });
  assert.deepEqual(missing, []);
  assert.ok(named.length > 50, `${named.length} tests are named`);
});

test('each test file that docs/asvs.md and docs/security-model.md name exists', () => {
  for (const page of ['docs/asvs.md', 'docs/security-model.md']) {
    const named = [...readFileSync(page, 'utf8').matchAll(/`([\w-]+\.test\.ts)`/g)].map(([, file = '']) => file);
    const missing = named.filter((file) => !existsSync(`test/${file}`));
    assert.deepEqual(missing, [], page);
    assert.ok(named.length > 30, `${page} names ${named.length}`);
  }
});
