import { type KeyId, newId, type OrganizationId } from '../src/domain/ids.ts';
import { listViewers } from '../src/keys/viewers-store.ts';
import { startService } from './support/app.ts';
import { dbAddEvents } from './support/histories.ts';
import { dbVacuum, plansOf, rowsRead } from './support/plans.ts';
import { t } from './support/tap.ts';

t.test(
  'the viewers of a key that is revealed often are counted from an index, without reading each event',
  async (t) => {
    const { urls, client, organizationId } = await startService(t);
    const [key, rare, frequent, other] = [newId('key'), newId('token'), newId('token'), newId('token')];
    const count = 9_000;
    await dbAddEvents(urls.superuser, organizationId, count, (sequence) => {
      if (sequence % 3 === 0) return { keyId: key, action: 'key.updated', actorId: rare };
      if (sequence % 3 === 1) return { actorId: frequent };
      return { keyId: key, actorId: sequence < 50 ? rare : sequence % 2 === 0 ? frequent : other };
    });
    await dbVacuum(urls.superuser, 'history');
    const revealsShown = 20;
    const page = { limit: 50, before: undefined, revealsShown };
    let viewers: Awaited<ReturnType<typeof listViewers>> = [];
    const [plan = []] = await plansOf(client.pool, async (db) => {
      viewers = await listViewers(db, organizationId as OrganizationId, key as KeyId, page);
    });
    t.same(viewers.map(({ admin }) => admin.id).toSorted(), [rare, frequent, other].toSorted());
    t.equal(
      viewers.reduce((sum, { times }) => sum + times, 0),
      count / 3,
    );
    const ofHistory = plan.filter((node) => node['Relation Name'] === 'history');
    const [counting, ...others] = ofHistory.filter((node) => node['Node Type'] === 'Index Only Scan');
    t.match(counting, { 'Index Name': 'history_reveals', 'Actual Rows': count / 3, 'Heap Fetches': 0 });
    t.same(others, []);
    const reading = ofHistory.filter((node) => node !== counting);
    t.ok(rowsRead(reading) <= viewers.length * revealsShown, `${rowsRead(reading)} events are read`);
  },
);
