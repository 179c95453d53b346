// Loaded into every server that is measured, before it: answers what the process has cost so far.
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';

// Counted where the library is called, so nothing that Latchkey says of itself has to be believed.
const argon2 = createRequire(import.meta.url)('argon2');
let argon2Runs = 0;
for (const name of ['hash', 'verify']) {
  const run = argon2[name];
  argon2[name] = (...parameters) => {
    argon2Runs += 1;
    return run(...parameters);
  };
}

process.on('message', ({ collectFirst }) => {
  if (collectFirst) globalThis.gc?.();
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
// The bench is gone, however it ended.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
