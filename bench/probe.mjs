// Preloaded into every measured server: reports the process's resource use on request.
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';

// Wrapping the library counts every call, independently of Latchkey's own metrics.
const argon2 = createRequire(import.meta.url)('argon2');
let argon2Runs = 0;
for (const name of ['hash', 'verify']) {
  const original = argon2[name];
  argon2[name] = (...args) => {
    argon2Runs += 1;
    return original(...args);
  };
}

process.on('message', ({ collectGarbage }) => {
  if (collectGarbage) globalThis.gc?.();
  const { rss, heapUsed, external } = process.memoryUsage();
  const { user, system } = process.cpuUsage();
  process.send?.({
    rssBytes: rss,
    usedBytes: heapUsed + external,
    cpuMicros: user + system,
    argon2Runs,
    descriptors: countDescriptors(),
  });
});

function countDescriptors() {
  try {
    return readdirSync('/proc/self/fd').length;
  } catch {
    return 0;
  }
}

// The channel also closes if the benchmark is killed, so no server outlives it.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
