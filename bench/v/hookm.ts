import { startLoad } from '../load.ts';
import { openStage } from '../stage.ts';
import { startServer } from '../servers.ts';
const stage = await openStage();
const load = startLoad();
const question = { before: 'GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ', after: '\r\n\r\n', status: 200, text: '{"hello":"world"}' };
const sums = new Map<string, number[][]>();
try {
  load.give('good', await stage.addKeys(stage.bootstrapped.organizationId, 50));
  const latchkey = await stage.startLatchkey();
  const job = { question, connections: 16, keySet: 'good', order: 'around' as const, from: 0, to: 1 };
  const variants = process.argv.slice(3);
  for (let i = 0; i < Number(process.argv[2]); i++) for (const v of i % 2 ? variants.toReversed() : variants) {
    const [d, pre = '', flags] = v.split('@') as [string, string?, string?];
    const s: any = await startServer(v.endsWith('.ts') ? new URL('../hello.ts', import.meta.url).pathname : new URL('./hello.mjs', import.meta.url).pathname, { imports: v.endsWith('.ts') ? ['tsx'] : [], env: { D: d === 'bare' ? '' : d, X_PRE: pre, ...(flags ? { X_FLAGS: flags } : {}), [v === 'bare.ts' ? 'NO' : 'LATCHKEY_URL']: `http://127.0.0.1:${latchkey.port}`, LATCHKEY_TOKEN: stage.bootstrapped.verifierToken.reveal() } as any });
    await load.run({ ...job, port: s.port, seconds: 1.5 });
    const pp0 = (await import('node:child_process')).execFileSync('/tmp/h/pp', ['0.1']).toString(); const f0 = await s.facts(); const seen: string[] = []; const fs = await import('node:fs'); const cpuOf = (pid: number) => fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(' ')[38]; const iv = setInterval(() => seen.push(cpuOf(s.pid) + '' + cpuOf((globalThis as any).loadPid)), 30);
    const r = await load.run({ ...job, port: s.port, seconds: 1.5 });
    const f1 = await s.facts(); clearInterval(iv); console.log(pp0, (await import('node:child_process')).execFileSync('/tmp/h/pp', ['0.1']).toString(), v.padEnd(6), ((f1.cpuMicros - f0.cpuMicros) / r.answers).toFixed(1), JSON.stringify(seen.reduce((m: any, x) => ({ ...m, [x]: (m[x] ?? 0) + 1 }), {})));
    (sums.get(v) ?? sums.set(v, []).get(v)!).push([r.answers / r.seconds, (f1.cpuMicros - f0.cpuMicros) / r.answers]);
    await s.stop();
  }
  const med = (a: number[]) => a.toSorted((x, y) => x - y)[a.length >> 1]!;
  const b = sums.get(variants[0]!)!;
  for (const [v, l] of sums) console.log(v.padEnd(40), 'rps', med(l.map((x) => x[0]!)).toFixed(0), 'cpu', med(l.map((x) => x[1]!)).toFixed(2), 'ratio', med(l.map((x, i) => x[0]! / b[i]![0]!)).toFixed(3), 'cpu ratio', med(l.map((x, i) => b[i]![1]! / x[1]!)).toFixed(3), '|', l.map((x) => x[1]!.toFixed(1)).join(' '));
} finally { load.stop(); await stage.close(); }
process.exit(0);
