import { chown, mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { findProcess, identityOf } from '../../src/embedded-postgres/processes.ts';
import type { ClusterUrls } from './cluster.ts';
import { freePort } from './ports.ts';
import { preparePostgres, programsFolder, signalFamily, unlessDebianPostgres } from './postgres-pair.ts';
import { eventually, type RunningProcess, run, type Scope, untilListening } from './process.ts';
import { unlessInstalled } from './programs.ts';
import { fill, snippetsOf } from './snippets.ts';

/** One Postgres with its Patroni. */
export interface PatroniMember {
  /** Past HAProxy. */
  superuserUrl: string;
  /** Sends a signal to Patroni, Postgres and their processes at once, as if the machine were switched off or hung. */
  signal(signal: NodeJS.Signals): Promise<void>;
}

/** Three members of Patroni, three of etcd, and HAProxy, as docs/scaling.md configures them. All end with the test. */
export interface PatroniCluster {
  /** The database of Latchkey, through HAProxy. */
  urls: ClusterUrls;
  leader(): Promise<PatroniMember>;
  /** Waits until another member is the leader. */
  untilPromoted(former: PatroniMember): Promise<void>;
  /** Makes another member the leader while nothing is broken. */
  switchover(): Promise<void>;
  /** Starts or continues every member, and waits until two follow the leader, one of them synchronously. */
  restore(): Promise<void>;
}

interface RunningMember extends PatroniMember {
  name: string;
  settings: string;
  restUrl: string;
  patroni: RunningProcess;
  start(): Promise<void>;
}

/** What `/cluster` of a member reports. */
interface ReportedMember {
  name: string;
  role: string;
  state: string;
  timeline?: number;
}

/** For tap's `skip`: false if everything is installed, otherwise the reason. */
export function unlessPatroni(): string | false {
  return unlessDebianPostgres() || unlessInstalled('haproxy') || unlessInstalled('patroni') || unlessInstalled('etcd');
}

const numbers = [1, 2, 3];
/** More than `ttl`, the promotion, and the time that a busy machine needs. */
const promotionLimitMs = 60_000;
const restoreLimitMs = 60_000;

export async function startPatroniCluster(t: Scope): Promise<PatroniCluster> {
  const { scratch, account, password, urlOf, urlsAt, createDatabase } = await preparePostgres(t, 'patroni');
  const identity = identityOf(account);
  const etcdHosts = await startEtcd(t, scratch);
  const [settings] = await snippetsOf('docs/scaling.md', 'Replicas', 'yaml');

  async function startMember(number: number): Promise<RunningMember> {
    const name = `postgres${number}`;
    const directory = path.join(scratch, name);
    await mkdir(directory);
    if (account !== undefined) await chown(directory, account.uid, account.gid);
    const [port, restPort] = [await freePort(), await freePort()];
    const address = `127.0.0.1:${port}`;
    const restAddress = `127.0.0.1:${restPort}`;
    const file = path.join(directory, 'config.yml');
    const places = {
      'name: postgres1': `name: ${name}`,
      '10.0.0.41:2379,10.0.0.42:2379,10.0.0.43:2379': etcdHosts,
      'listen: 10.0.0.21:8008': `listen: ${restAddress}`,
      'connect_address: 10.0.0.21:8008': `connect_address: ${restAddress}`,
      'listen: 10.0.0.21:5432': `listen: ${address}`,
      'connect_address: 10.0.0.21:5432': `connect_address: ${address}`,
      '/usr/lib/postgresql/15/bin': programsFolder() ?? '',
      '/var/lib/postgresql/15/main': `${directory}/data`,
      '/var/lib/postgresql/pgpass': `${directory}/pgpass`,
      '/var/run/postgresql': directory,
      'username: postgres, password: …': `username: postgres, password: ${password}`,
      'username: replicator, password: …': `username: replicator, password: ${password}`,
      'replicator 10.0.0.0/24': 'replicator 127.0.0.1/32',
      'all all 10.0.0.0/24': 'all all 127.0.0.1/32',
    };
    await writeFile(file, fill(settings, places), { mode: 0o644 });
    const start = async () => {
      const patroni = run(t, 'patroni', [file], { cwd: '/', ...identity });
      await untilListening(restPort, patroni);
      return patroni;
    };
    const member: RunningMember = {
      name,
      settings: file,
      superuserUrl: urlOf('postgres', port, 'postgres'),
      restUrl: `http://${restAddress}`,
      patroni: await start(),
      async start() {
        member.patroni = await start();
      },
      async signal(signal) {
        const postmaster = await postmasterOf(`${directory}/data`);
        // Patroni first: it would start Postgres again.
        await signalFamily(member.patroni.child.pid ?? 0, signal);
        if (postmaster !== undefined) await signalFamily(postmaster, signal);
      },
    };
    t.teardown(async () => {
      await member.signal('SIGKILL');
      await eventually(async () => (await postmasterOf(`${directory}/data`)) === undefined);
    });
    return member;
  }

  const members: RunningMember[] = [];
  for (const number of numbers) members.push(await startMember(number));

  const leaders = async () => {
    const found = await Promise.all(members.map(async (member) => ((await isLeader(member)) ? [member] : [])));
    return found.flat();
  };
  const untilComplete = async () => {
    let reported: ReportedMember[] = [];
    await eventually(async () => {
      const [leader, second] = await leaders();
      if (leader === undefined || second !== undefined) return false;
      const reply = await fetch(`${leader.restUrl}/cluster`);
      reported = ((await reply.json()) as { members: ReportedMember[] }).members;
      const timeline = reported.find(({ name }) => name === leader.name)?.timeline;
      // A former leader may run for a moment before Patroni rewinds it to the timeline of the new one.
      const running = reported.filter((one) => /^(running|streaming)$/.test(one.state) && one.timeline === timeline);
      return running.length === numbers.length && reported.some(({ role }) => role === 'sync_standby');
    }, restoreLimitMs).catch((cause: unknown) => {
      const logs = members.map(({ name, patroni }) => `${name}:\n${patroni.output().slice(-4_000)}`);
      throw new Error(`not all members run: ${JSON.stringify(reported)}\n${logs.join('\n')}`, { cause });
    });
  };
  await untilComplete();

  const port = await startBalancer(t, scratch, members);
  await createDatabase(port);

  return {
    urls: urlsAt(port),
    leader: () => eventually(async () => (await leaders()).at(0)),
    untilPromoted: async (former) => {
      await eventually(async () => (await leaders()).some((leader) => leader !== former), promotionLimitMs);
    },
    async switchover() {
      const patronictl = run(t, 'patronictl', ['-c', members[0]?.settings ?? '', 'switchover', '--force']);
      const { code } = await patronictl.exited;
      if (code !== 0) throw new Error(`patronictl: ${patronictl.output()}`);
    },
    async restore() {
      for (const member of members) {
        if (member.patroni.child.signalCode === null) await member.signal('SIGCONT');
        else await member.start();
      }
      await untilComplete();
    },
  };
}

/** @returns the addresses, as Patroni's setting has them */
async function startEtcd(t: Scope, scratch: string): Promise<string> {
  const members = await Promise.all(
    numbers.map(async (number) => ({ name: `etcd${number}`, port: await freePort(), peerPort: await freePort() })),
  );
  const cluster = members.map(({ name, peerPort }) => `${name}=http://127.0.0.1:${peerPort}`).join(',');
  const started = members.map(({ name, port, peerPort }) => {
    const [url, peerUrl] = [`http://127.0.0.1:${port}`, `http://127.0.0.1:${peerPort}`];
    const args = ['--name', name, '--data-dir', path.join(scratch, name), '--initial-cluster', cluster];
    args.push('--listen-client-urls', url, '--advertise-client-urls', url);
    args.push('--listen-peer-urls', peerUrl, '--initial-advertise-peer-urls', peerUrl);
    // Patroni's setting `etcd` is for version 2 of the API.
    args.push('--enable-v2');
    // On a busy machine a healthy member may be late.
    args.push('--heartbeat-interval', '500', '--election-timeout', '5000');
    return { port, process: run(t, 'etcd', args) };
  });
  for (const { port, process } of started) await untilListening(port, process);
  return members.map(({ port }) => `127.0.0.1:${port}`).join(',');
}

/** @returns the port at which HAProxy leads to the leader */
async function startBalancer(t: Scope, scratch: string, members: readonly RunningMember[]): Promise<number> {
  const [, snippet] = await snippetsOf('docs/scaling.md', 'Replicas', 'haproxy');
  const port = await freePort();
  const servers = members.map(({ superuserUrl, restUrl }, index) => [
    `10.0.0.2${index + 1}:5432 port 8008`,
    `${new URL(superuserUrl).host} port ${new URL(restUrl).port}`,
  ]);
  const file = path.join(scratch, 'haproxy.cfg');
  await writeFile(file, fill(snippet, { 'bind :5432': `bind 127.0.0.1:${port}`, ...Object.fromEntries(servers) }));
  const balancer = run(t, 'haproxy', ['-f', file]);
  // Until its first check every member counts as the leader.
  await balancer.until(/is DOWN.*is DOWN/s);
  await untilListening(port, balancer);
  return port;
}

async function isLeader({ restUrl }: RunningMember): Promise<boolean> {
  const reply = await fetch(`${restUrl}/primary`, { signal: AbortSignal.timeout(1_000) }).catch(() => undefined);
  return reply?.status === 200;
}

/** The running Postgres of a data folder. Patroni is not its parent. */
async function postmasterOf(data: string): Promise<number | undefined> {
  const text = await readFile(`${data}/postmaster.pid`, 'utf8').catch(() => '');
  const pid = Number.parseInt(text, 10);
  const found = pid > 0 ? await findProcess(pid) : undefined;
  return found?.command.includes(data) ? pid : undefined;
}
