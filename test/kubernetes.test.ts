import { mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { parseAllDocuments } from 'yaml';
import { environment } from '../src/config/config.ts';
import type { Json } from './support/app.ts';
import { readDockerfile } from './support/dockerfile.ts';
import { run } from './support/process.ts';
import { t } from './support/tap.ts';

// Checks the manifest of docs/kubernetes.md against the Kubernetes types and against the service.

const page = await readFile('docs/kubernetes.md', 'utf8');
const [, manifest = ''] = /^```yaml\n(.*?)^```$/ms.exec(page) ?? [];
const [job, deployment, service, budget]: Json[] = parseAllDocuments(manifest).map((document) => {
  if (document.errors.length > 0) throw document.errors[0];
  return document.toJS();
});
const api: Json = JSON.parse(await readFile('openapi/openapi.json', 'utf8'));

const typeOf: Record<string, string> = {
  Job: 'kubernetes-types/batch/v1',
  Deployment: 'kubernetes-types/apps/v1',
  Service: 'kubernetes-types/core/v1',
  PodDisruptionBudget: 'kubernetes-types/policy/v1',
};

t.test('the manifest is valid by the Kubernetes types', async (t) => {
  t.equal(await compile(t, [job, deployment, service, budget]), '');
  const misspelt = structuredClone(deployment);
  misspelt.spec.template.spec.containers[0].redinessProbe = {};
  t.match(await compile(t, [misspelt]), /redinessProbe/, 'a misspelt member would be found');
});

/** The output of TypeScript for the objects as literals, where unknown members are errors. */
async function compile(t: Test, objects: Json[]): Promise<string> {
  const directory = await mkdtemp(path.join(tmpdir(), 'latchkey-kubernetes-'));
  t.teardown(() => rm(directory, { recursive: true }));
  await symlink(path.resolve('node_modules'), path.join(directory, 'node_modules'));
  const lines = objects.map(
    (object) => `(${JSON.stringify(object)}) satisfies import('${typeOf[object.kind]}').${object.kind};`,
  );
  await writeFile(path.join(directory, 'manifest.ts'), `${lines.join('\n')}\nexport {};\n`);
  const tsc = path.resolve('node_modules/typescript/bin/tsc');
  const flags = ['--noEmit', '--strict', '--module', 'esnext', '--moduleResolution', 'bundler', '--types', ''];
  const compiler = run(t, process.execPath, [tsc, ...flags, 'manifest.ts'], { cwd: directory });
  await compiler.exited;
  return compiler.output();
}

const pods = [job.spec.template.spec, deployment.spec.template.spec];
const containers: Json[] = pods.map((pod) => pod.containers[0]);

t.test('each variable is Latchkey’s, and each secret is a mounted file', async (t) => {
  const created = Object.fromEntries(
    [...page.matchAll(/create secret generic (\S+) (.*)$/gm)].map(([, name = '', files = '']) => [
      name,
      [...files.matchAll(/--from-file=(\S+)/g)].map(([, file]) => file),
    ]),
  );
  for (const [index, { env, volumeMounts }] of containers.entries()) {
    const [{ secret }] = pods[index].volumes;
    for (const { name, value } of env) {
      t.ok(name in environment.shape, name);
      t.ok(environment.shape[name as keyof typeof environment.shape].safeParse(value).success, `${name}=${value}`);
      t.notMatch(value, /:\/\/[^/]*@/, 'no password in an environment');
      if (!name.endsWith('_FILE')) continue;
      t.equal(path.dirname(value), volumeMounts[0].mountPath);
      t.ok(created[secret.secretName]?.includes(path.basename(value)), `${secret.secretName} has ${value}`);
    }
  }
  const namesOf = (container: Json) => container.env.map(({ name }: Json) => name);
  t.same(namesOf(containers[0]), ['MIGRATION_DATABASE_URL_FILE'], 'only the Job has the owner’s URL');
  t.notOk(namesOf(containers[1]).includes('MIGRATION_DATABASE_URL_FILE'));
});

t.test('probes and ports match the service', async (t) => {
  const [, container] = containers;
  const port = (await readDockerfile()).find(({ word }) => word === 'EXPOSE')?.rest;
  const metricsPort = container.env.find(({ name }: Json) => name === 'METRICS_PORT').value;
  t.same(container.ports, [
    { name: 'http', containerPort: Number(port) },
    { name: 'metrics', containerPort: Number(metricsPort) },
  ]);
  t.equal(service.spec.ports.length, 1, 'metrics need no credential, and are not behind the Service');
  t.equal(service.spec.ports[0].targetPort, 'http');
  t.same(service.spec.selector, deployment.spec.template.metadata.labels);
  t.same(deployment.spec.selector.matchLabels, deployment.spec.template.metadata.labels);
  t.same(budget.spec.selector, deployment.spec.selector);
  for (const [probe, where] of [
    ['startupProbe', '/readyz'],
    ['readinessProbe', '/readyz'],
    ['livenessProbe', '/livez'],
  ] as const) {
    t.same(container[probe].httpGet, { path: where, port: 'http' });
    t.same(api.paths[where].get.security, [], `${where} needs no credential`);
  }
});

t.test('the grace period is long enough for a replica to end', async (t) => {
  const serve = await readFile('src/cli/serve.ts', 'utf8');
  const [, stopMs = ''] = /stopWithinMs = ([0-9_]+)/.exec(serve) ?? [];
  const [, container] = containers;
  const needed = container.lifecycle.preStop.sleep.seconds + Number(stopMs.replaceAll('_', '')) / 1000;
  t.ok(needed > 10 && pods[1].terminationGracePeriodSeconds > needed, `${needed} s`);
});

t.test('no container runs as root, writes files or has a privilege', async (t) => {
  const user = (await readDockerfile()).find(({ word }) => word === 'USER')?.rest;
  for (const [index, { securityContext }] of containers.entries()) {
    const { runAsUser, runAsGroup, runAsNonRoot, seccompProfile } = pods[index].securityContext;
    t.same([`${runAsUser}:${runAsGroup}`, runAsNonRoot, seccompProfile.type], [user, true, 'RuntimeDefault']);
    t.same(securityContext, {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    });
    t.equal(pods[index].automountServiceAccountToken, false);
  }
  const { version } = JSON.parse(await readFile('package.json', 'utf8'));
  for (const { image } of containers) t.ok(image.endsWith(`:${version}`), image);
  t.ok(job.metadata.name.endsWith(version.replaceAll('.', '-')), job.metadata.name);
});

t.test('the commands exist in the program', async (t) => {
  const program = await readFile('src/cli/latchkey.ts', 'utf8');
  const commands = containers.map(({ args }) => args[0]);
  t.same(commands, ['migrate', 'serve']);
  for (const command of commands) t.match(program, new RegExp(`${command}Command\\(|\\.command\\('${command}'\\)`));
});
