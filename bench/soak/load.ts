import { setTimeout as delay } from 'node:timers/promises';
import { type Followed, follow } from '../../test/support/event-stream.ts';
import { eventually } from '../../test/support/process.ts';
import { verifyKeys } from './backends.ts';
import { handOver, reportLeaks, serveOneself } from './holder-stories.ts';
import { exceedLimit, importKeys, livePartnerLife, replaceExpiredKeys } from './key-stories.ts';
import { changePolicies, manageWebhooks, recover, useTokens } from './organization-stories.ts';
import type { Outside } from './outside.ts';
import { auditHistory, readLists } from './readers.ts';
import {
  type SoakOptions,
  type SoakSession,
  type SoakStory,
  type SoakTally,
  type SoakTarget,
  startSession,
} from './session.ts';

const followersAtOnce = 3;

/**
 * Runs the load, and waits until everything that it caused has happened: webhooks have arrived, and followers were
 * notified. Each worker completes its last story, so the tally is complete.
 */
export async function runSoak(target: SoakTarget, outside: Outside, options: SoakOptions): Promise<SoakTally> {
  const session = startSession(target, options);
  const { tally } = session;
  const endsAtMs = performance.now() + options.seconds * 1_000;
  const webhookId = await prepare(session, outside);
  const { url, verifierToken } = target;
  // Each follower is closed below.
  const scope = { teardown: () => undefined };
  const followers = await Promise.all(Array.from({ length: followersAtOnce }, () => follow(scope, url, verifierToken)));
  const imported: string[] = [];
  const stories: Record<string, SoakStory[]> = {
    verifyKeys: Array.from({ length: options.verifiers }, () => verifyKeys(session)),
    livePartnerLife: Array.from({ length: options.writers }, () => livePartnerLife(session)),
    importKeys: [importKeys(session, imported)],
    replaceExpiredKeys: [replaceExpiredKeys(session)],
    exceedLimit: [exceedLimit(session)],
    handOver: [handOver(session)],
    serveOneself: [serveOneself(session)],
    reportLeaks: [reportLeaks(session, outside.github)],
    recover: [recover(session)],
    useTokens: [useTokens(session)],
    changePolicies: [changePolicies(session)],
    manageWebhooks: [manageWebhooks(session, outside.url)],
    readLists: [readLists(session)],
    auditHistory: [auditHistory(session)],
  };
  await Promise.all(
    Object.entries(stories).flatMap(([name, workers]) =>
      workers.map(async (story) => {
        const pauseMs = name === 'verifyKeys' ? options.pauseMs.verifiers : options.pauseMs.others;
        while (performance.now() < endsAtMs && tally.unexpected.length <= 100) {
          await story().catch((error: unknown) => session.fail(`${name}: ${String(error)}`));
          tally.rounds[name] = (tally.rounds[name] ?? 0) + 1;
          await delay(pauseMs);
        }
      }),
    ),
  );
  await verifyImported(session, imported);
  await settle(session, { outside, webhookId, followers });
  for (const follower of followers) follower.close();
  session.close();
  return tally;
}

/** Sets the policies, and creates the webhook for all events. @returns its id */
async function prepare({ callerWith, target }: SoakSession, outside: Outside): Promise<string> {
  const { change } = callerWith(target.adminToken);
  const rateLimit = { requests: 999_999_998, windowSeconds: 60 };
  await change('rate_limit.updated', 200, 'PUT', '/v1/rate-limit', rateLimit);
  await change('organization.updated', 200, 'PATCH', '/v1/organization', {
    leakResponse: 'suspend',
    selfService: true,
    maxKeyLifetimeSeconds: 31_536_000,
    idleSuspendAfterDays: 30,
  });
  const newWebhook = { url: `${outside.url}/all`, events: ['*'] };
  const webhook = await change('webhook.created', 201, 'POST', '/v1/webhooks', newWebhook);
  outside.secret = webhook.secret;
  return webhook.id;
}

/** Every imported key that was not deleted must verify. */
async function verifyImported(session: SoakSession, imported: readonly string[]): Promise<void> {
  const { call } = session.callerWith(session.target.verifierToken);
  for (const key of imported) {
    const { code } = await call(200, 'POST', '/v1/verify', { key, permission: 'read' });
    if (code === 'valid') session.tally.allowed += 1;
    else session.fail(`an imported key is ${code}`);
  }
}

interface Effects {
  outside: Outside;
  webhookId: string;
  followers: readonly Followed[];
}

async function settle(session: SoakSession, { outside, webhookId, followers }: Effects): Promise<void> {
  const { call } = session.callerWith(session.target.adminToken);
  // Longer than the second retry of a delivery takes.
  await eventually(async () => {
    const { data } = await call(200, 'GET', `/v1/webhooks/${webhookId}/deliveries?status=pending`);
    return data.length === 0;
  }, 400_000).catch((error: unknown) => session.fail(`deliveries are pending: ${String(error)}`));
  for (const flaw of outside.flaws) session.fail(flaw);
  for (const { events } of followers) {
    const resets = events.filter(({ event }) => event === 'reset').length;
    // A backend then verifies all keys again, so it may miss ids.
    if (resets > 0) session.fail(`a follower was reset ${resets} times`);
    const missed = () => {
      const reported = new Set(events.flatMap(({ event, data }) => (event === 'change' ? data.ids : [])));
      return [...session.changedKeys].filter((id) => !reported.has(id));
    };
    await eventually(async () => missed().length === 0, 5_000).catch(() =>
      session.fail(`a follower missed ${missed().length} changes, such as of ${missed()[0]}`),
    );
  }
}
