import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import type { Test } from 'tap';
import type { Json } from './app.ts';
import { eventually } from './process.ts';

/** A page in a real Chromium. */
export interface Page {
  /** Runs JavaScript in the page, waits for its promise, and returns its value as JSON. */
  evaluate(script: string): Promise<Json>;
  /** Waits until the script returns a truthy value. */
  until(script: string): Promise<Json>;
  /** Presses a key on the keyboard. */
  press(key: 'Tab' | 'Enter'): Promise<void>;
  /** Cuts the page off the network, or connects it again. */
  offline(on: boolean): Promise<void>;
  /** Sets `prefers-color-scheme`. */
  prefers(colorScheme: 'light' | 'dark'): Promise<void>;
  /** What a screen reader is given. */
  accessibility(): Promise<Array<{ role: string; name: string }>>;
  /** Errors and warnings of the console, and uncaught errors of the page. */
  errors: string[];
  /** The URLs that the page has requested. */
  requested: string[];
}

/**
 * Opens a page in Chromium, which is controlled by the DevTools protocol over two pipes and closed when the test ends.
 */
export async function openPage(t: Test, url: string): Promise<Page> {
  const profile = await mkdtemp(path.join(tmpdir(), 'latchkey-browser-'));
  const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run'];
  const args = [...flags, '--remote-debugging-pipe', `--user-data-dir=${profile}`, 'about:blank'];
  const child = spawn('chromium', args, { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
  const exited = once(child, 'close');
  t.teardown(async () => {
    child.kill('SIGKILL');
    await exited;
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  });
  const errors: string[] = [];
  const requested: string[] = [];
  const devTools = connect(child.stdio[3] as Writable, child.stdio[4] as Readable, ({ method, params }) => {
    if (method === 'Runtime.exceptionThrown') errors.push(JSON.stringify(params.exceptionDetails));
    if (method === 'Log.entryAdded' && isBad(params.entry.level))
      errors.push(`${params.entry.text} ${params.entry.url}`);
    if (method === 'Runtime.consoleAPICalled' && isBad(params.type)) errors.push(JSON.stringify(params.args));
    if (method === 'Network.requestWillBeSent') requested.push(params.request.url);
  });
  const { targetInfos } = await devTools('Target.getTargets');
  const { targetId } = targetInfos.find(({ type }: Json) => type === 'page');
  const { sessionId } = await devTools('Target.attachToTarget', { targetId, flatten: true });
  for (const domain of ['Runtime', 'Log', 'Network', 'Page']) await devTools(`${domain}.enable`, {}, sessionId);
  await devTools('Page.navigate', { url }, sessionId);

  async function evaluate(script: string): Promise<Json> {
    const params = { expression: script, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await devTools('Runtime.evaluate', params, sessionId);
    if (exceptionDetails !== undefined) throw new Error(`${script} failed: ${JSON.stringify(exceptionDetails)}`);
    return result.value;
  }
  async function press(key: 'Tab' | 'Enter'): Promise<void> {
    const code = { Tab: 9, Enter: 13 }[key];
    const pressed = { key, code: key, windowsVirtualKeyCode: code, ...(key === 'Enter' ? { text: '\r' } : {}) };
    for (const type of ['keyDown', 'keyUp']) await devTools('Input.dispatchKeyEvent', { type, ...pressed }, sessionId);
  }
  async function offline(on: boolean): Promise<void> {
    const conditions = { offline: on, latency: 0, downloadThroughput: -1, uploadThroughput: -1 };
    await devTools('Network.emulateNetworkConditions', conditions, sessionId);
  }
  async function prefers(value: 'light' | 'dark'): Promise<void> {
    await devTools('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value }] }, sessionId);
  }
  async function accessibility() {
    const { nodes } = await devTools('Accessibility.getFullAXTree', {}, sessionId);
    return nodes
      .filter(({ ignored }: Json) => ignored !== true)
      .map(({ role, name }: Json) => ({ role: role?.value, name: name?.value ?? '' }));
  }
  return {
    evaluate,
    press,
    offline,
    prefers,
    accessibility,
    until: (script) => eventually(() => evaluate(script)),
    errors,
    requested,
  };
}

const isBad = (level: string) => level === 'error' || level === 'warning';

type Call = (method: string, params?: object, sessionId?: string) => Promise<Json>;

/** Messages are JSON, each followed by a zero byte. */
function connect(input: Writable, output: Readable, onEvent: (event: Json) => void): Call {
  const waiting = new Map<number, (message: Json) => void>();
  let received = '';
  output.setEncoding('utf8');
  output.on('data', (chunk: string) => {
    const texts = (received + chunk).split('\0');
    received = texts.pop() ?? '';
    for (const message of texts.map((text) => JSON.parse(text))) {
      if (message.id === undefined) onEvent(message);
      else waiting.get(message.id)?.(message);
    }
  });
  let calls = 0;
  return async (method, params = {}, sessionId) => {
    const id = ++calls;
    const replied = new Promise<Json>((resolve) => waiting.set(id, resolve));
    input.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    const { result, error } = await replied;
    waiting.delete(id);
    if (error !== undefined) throw new Error(`${method}: ${error.message}`);
    return result;
  };
}
