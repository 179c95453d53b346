import { spawnSync } from 'node:child_process';

/** Programs that some tests need. Without them these tests are skipped, with a reason. */
export type Program =
  | 'nginx'
  | 'caddy'
  | 'redis-server'
  | 'pgbouncer'
  | 'patroni'
  | 'etcd'
  | 'node'
  | 'python3'
  | 'openssl'
  | 'curl'
  | 'psql'
  | 'jq'
  | 'chromium'
  | 'git'
  | 'go'
  | 'systemd-analyze'
  | 'promtool'
  | 'haproxy'
  | 'apache2'
  | 'pg_dump'
  | 'buildah'
  | 'debootstrap'
  | 'unshare'
  | 'npm';

/** For tap's `skip`: false if the program is installed, otherwise the reason. */
export function unlessInstalled(program: Program): string | false {
  const isInstalled = spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
  return isInstalled ? false : `${program} is not installed`;
}
