import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { newId } from '../src/domain/ids.ts';
import type { Link } from '../src/history/chain.ts';
import type { Checkpoint } from '../src/history/checkpoints/checkpoint.ts';
import {
  chainOfTexts,
  exportOf,
  findByLatchkey,
  findByScript,
  noteOf,
  publicKey,
  sha256,
  textOf,
} from './support/histories.ts';
import { unlessInstalled } from './support/programs.ts';
import { t } from './support/tap.ts';

// Two verifiers that share no code check the same histories, and must give the same results.

interface History {
  chain: string;
  links: Link[];
}

/** A tampered history, and where the verifiers must find it. */
interface Case extends History {
  what: string;
  text: Buffer;
  firstBad: number | undefined;
  /** The checkpoints signed before the change. */
  checkpoints: Checkpoint[];
}

const anyText = fc.oneof(
  fc.string({ unit: 'grapheme' }),
  fc.string({ unit: 'binary' }).map((text) => text.replaceAll('\u0000', '')),
  fc.constantFrom('\u2028', '\u2029', '\r', '\u007f', '\u0001', '"\\\n\t', '\ufeff', '😀', '\ue000', '\ufb33'),
);
const anyNumber = fc.oneof(
  fc.double({ noNaN: true, noDefaultInfinity: true }),
  fc.integer(),
  fc.maxSafeInteger(),
  fc.constantFrom(0, -0, 1e21, 1e20, 123456789012345680000, 1e-6, 1e-7, 1.5e-7, 5e-324, 1.7976931348623157e308, 0.1),
  fc.tuple(fc.integer({ min: -999, max: 999 }), fc.integer({ min: -25, max: 25 })).map(([n, e]) => Number(`${n}e${e}`)),
);
const { details } = fc.letrec((tie) => ({
  details: fc.dictionary(anyText, tie('value'), { maxKeys: 4 }),
  value: fc.oneof(
    { maxDepth: 3 },
    fc.constantFrom(null, true, false),
    anyText,
    anyNumber,
    fc.array(tie('value'), { maxLength: 3 }),
    tie('details'),
  ),
}));

const histories = fc.array(details, { minLength: 2, maxLength: 7 }).map((all): History => {
  const chain = newId('org');
  return { chain, links: chainOfTexts(all.map((one, index) => textOf(chain, index + 1, one))) };
});

type Tampering = (history: History, at: number) => Pick<Case, 'text' | 'firstBad'>;

const textsOf = (links: readonly Link[]) => links.map(({ canonical }) => canonical);
const changed = ({ chain }: History, sequence: number) => textOf(chain, sequence, { changed: 'by somebody' });
const withBytes = (links: readonly Link[], at: number, change: (line: Buffer) => Buffer) =>
  Buffer.concat(links.map((link, index) => (index + 1 === at ? change(exportOf([link])) : exportOf([link]))));

/** Tampering that needs no checkpoint. `at` is from 1 to the number of events minus one. */
const foundAlone: Record<string, Tampering> = {
  nothing: ({ links }) => ({ text: exportOf(links), firstBad: undefined }),
  'an edit': (history, at) => {
    const links = history.links.with(at - 1, { ...linkAt(history, at), canonical: changed(history, at) });
    return { text: exportOf(links), firstBad: at };
  },
  'an edit with its hash': (history, at) => {
    const { previous_hash } = linkAt(history, at);
    const canonical = changed(history, at);
    const link = { canonical, previous_hash, hash: sha256(previous_hash, canonical) };
    return { text: exportOf(history.links.with(at - 1, link)), firstBad: at + 1 };
  },
  'a deletion': ({ links }, at) => ({ text: exportOf(links.toSpliced(at - 1, 1)), firstBad: at }),
  'a swap': (history, at) => ({
    text: exportOf(history.links.with(at - 1, linkAt(history, at + 1)).with(at, linkAt(history, at))),
    firstBad: at,
  }),
  'an event twice': (history, at) => ({
    text: exportOf(history.links.toSpliced(at, 0, linkAt(history, at))),
    firstBad: at + 1,
  }),
  "another organization's event": (history, at) => {
    const texts = textsOf(history.links).with(at, textOf(newId('org'), at + 1, {}));
    return { text: exportOf(chainOfTexts(texts)), firstBad: at + 1 };
  },
  'a text that is not canonical, with a matching hash': (history, at) => {
    const texts = textsOf(history.links).with(at - 1, linkAt(history, at).canonical.replace(':', ': '));
    return { text: exportOf(chainOfTexts(texts)), firstBad: at };
  },
  'a number in another spelling, with a matching hash': (history, at) => {
    const spelled = `{"details":{"n":1.0},"organizationId":"${history.chain}","sequence":${at}}`;
    return { text: exportOf(chainOfTexts(textsOf(history.links).with(at - 1, spelled))), firstBad: at };
  },
  'a number that JSON cannot hold': (history, at) => {
    const spelled = `{"details":{"n":1e999},"organizationId":"${history.chain}","sequence":${at}}`;
    return { text: exportOf(chainOfTexts(textsOf(history.links).with(at - 1, spelled))), firstBad: at };
  },
  'a lone surrogate': (history, at) => {
    const spelled = `{"details":{"s":"\\ud800"},"organizationId":"${history.chain}","sequence":${at}}`;
    return { text: exportOf(chainOfTexts(textsOf(history.links).with(at - 1, spelled))), firstBad: at };
  },
  'a member twice': (history, at) => {
    const spelled = `{"details":{"a":1,"a":1},"organizationId":"${history.chain}","sequence":${at}}`;
    return { text: exportOf(chainOfTexts(textsOf(history.links).with(at - 1, spelled))), firstBad: at };
  },
  'a sequence that is text': (history, at) => {
    const spelled = `{"details":{},"organizationId":"${history.chain}","sequence":"${at}"}`;
    return { text: exportOf(chainOfTexts(textsOf(history.links).with(at - 1, spelled))), firstBad: at };
  },
  'a forged hash': (history, at) => ({
    text: exportOf(history.links.with(at - 1, { ...linkAt(history, at), hash: Buffer.alloc(32, at) })),
    firstBad: at,
  }),
  'a byte that is not UTF-8': ({ links }, at) => ({
    text: withBytes(links, at, (line) => Buffer.concat([line.subarray(0, 2), Buffer.of(0xff), line.subarray(2)])),
    firstBad: at,
  }),
  'an end in the middle of a line': ({ links }) => ({
    text: exportOf(links).subarray(0, -30),
    firstBad: links.length,
  }),
  'a line that is not an event': ({ links }, at) => ({
    text: withBytes(links, at, () => Buffer.from('{"hello":"world"}\n')),
    firstBad: at,
  }),
  'an empty line': ({ links }, at) => ({ text: withBytes(links, at, () => Buffer.from('\n')), firstBad: at }),
};

/** Tampering that a chain alone does not show. One checkpoint signed all events, another one the first `at`. */
const foundByCheckpoints: Record<string, Tampering> = {
  'nothing, with checkpoints': ({ links }) => ({ text: exportOf(links), firstBad: undefined }),
  'a cut tail, or an old backup': ({ links }, at) => ({ text: exportOf(links.slice(0, at)), firstBad: at + 1 }),
  'everything cut': () => ({ text: Buffer.alloc(0), firstBad: 1 }),
  'a whole rewrite': (history) => ({
    text: exportOf(chainOfTexts(history.links.map((_, index) => changed(history, index + 1)))),
    firstBad: 1,
  }),
  'a rewrite from some event on': (history, at) => {
    const texts = textsOf(history.links).map((text, index) => (index < at ? text : changed(history, index + 1)));
    return { text: exportOf(chainOfTexts(texts)), firstBad: at + 1 };
  },
  'an old backup that was continued': (history, at) => {
    const later = [...history.links, 1, 2].map((_, index) => changed(history, index + 1)).slice(at);
    return { text: exportOf(chainOfTexts([...textsOf(history.links.slice(0, at)), ...later])), firstBad: at + 1 };
  },
};

function linkAt({ links }: History, sequence: number): Link {
  const link = links[sequence - 1];
  if (link === undefined) throw new Error(`there is no event ${sequence}`);
  return link;
}

const skip = unlessInstalled('python3') || unlessInstalled('openssl');

const seed = Number(process.env['HISTORIES_SEED'] ?? Date.now() % 2 ** 31);

/** Applies each kind of tampering in turn to random histories. */
function casesOf(tamperings: Record<string, Tampering>, count: number): Case[] {
  const kinds = Object.entries(tamperings);
  const random = fc.tuple(histories, fc.nat());
  return fc.sample(random, { numRuns: count, seed }).map(([history, nat], index) => {
    const [what, tamper] = kinds[index % kinds.length] ?? [];
    if (what === undefined || tamper === undefined) throw new Error('there is no kind');
    const { chain, links } = history;
    const at = 1 + (nat % (links.length - 1));
    const signed = (size: number) => ({ chain, size, hash: linkAt(history, size).hash });
    return { ...history, what, ...tamper(history, at), checkpoints: [signed(links.length), signed(at)] };
  });
}

t.test(
  `two verifiers give the right result for 1,000 random histories, most of them tampered with (seed ${seed})`,
  { skip },
  async (t) => {
    const cases = casesOf(foundAlone, 900);
    const found = findByScript(
      t,
      cases.map(({ text }) => text),
    );
    for (const [index, { what, text, firstBad }] of cases.entries()) {
      const [byLatchkey, byScript] = [await findByLatchkey(text), found[index]];
      t.equal(byLatchkey.firstBad, firstBad, `Latchkey: ${what} (${index}): ${byLatchkey.why}`);
      t.equal(byScript?.firstBad, firstBad, `the script: ${what} (${index}): ${byScript?.why}`);
    }
  },
);

t.test('checkpoints show tampering that the chain alone does not show', { skip }, async (t) => {
  // An empty export does not name its chain, so with several chains it cannot be checked.
  const { 'everything cut': everythingCut, ...others } = foundByCheckpoints;
  const cases = casesOf(others, 100);
  const notes = cases.flatMap(({ checkpoints }) => checkpoints.map(noteOf)).join('\n');
  const found = findByScript(
    t,
    cases.map(({ text }) => text),
    { notes, publicKey },
  );
  for (const [index, { what, text, firstBad, checkpoints }] of cases.entries()) {
    const [byLatchkey, byScript] = [await findByLatchkey(text, checkpoints), found[index]];
    t.equal(byLatchkey.firstBad, firstBad, `Latchkey: ${what} (${index}): ${byLatchkey.why}`);
    t.equal(byScript?.firstBad, firstBad, `the script: ${what} (${index}): ${byScript?.why}`);
    t.equal((await findByLatchkey(text)).firstBad, undefined, 'the chain alone shows nothing');
  }

  if (everythingCut === undefined) throw new Error('there is no such kind');
  for (const { text, checkpoints, firstBad } of casesOf({ 'everything cut': everythingCut }, 1)) {
    t.equal((await findByLatchkey(text, checkpoints)).firstBad, firstBad);
    const [byScript] = findByScript(t, [text], { notes: checkpoints.map(noteOf).join('\n'), publicKey });
    t.equal(byScript?.firstBad, firstBad);
  }
});

t.test('the script imports only the standard library', async (t) => {
  const text = readFileSync('docs/verify-history.py', 'utf8');
  const imported = [...text.matchAll(/^(?:import|from) (\S+)/gm)].map(([, name]) => name);
  t.same(imported, ['argparse', 'base64', 'hashlib', 'json', 'os', 're', 'subprocess', 'sys', 'tempfile']);
});
