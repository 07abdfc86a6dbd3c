// Two people in Element Call: they see each other, one vanishes, and the call
// is told so; once more with the server crashing at that moment.
import { ask, kill, launch, must, poll, run, shows, sources, step } from './lib.mjs';
import { Visitor, site } from './element.mjs';
import { Account } from './matrix.mjs';

const memberTypes = { compatibility: 'org.matrix.msc3401.call.member', matrix_2_0: 'org.matrix.msc4143.rtc.member' };

await run(async (config) => {
  const base = await site(config, config.mode);
  const alice = await Visitor.open(config, await launch(config, sources.red), base, 'alice');
  const bobsBrowser = await launch(config, sources.green);
  const bob = await Visitor.open(config, bobsBrowser, base, 'bob');
  const report = { mode: config.mode };

  await alice.register();
  const link = await alice.create('daily meeting');
  const account = await Account.register(config.server, 'bob');
  await bob.login(account);
  await alice.enter();
  await bob.enter(link);

  await shows('alice sees bob', alice.page, [sources.green]);
  await shows('bob sees alice', bob.page, [sources.red]);
  for (const v of [alice, bob]) {
    const types = await v.published();
    must(types.length === 1 && types[0] === memberTypes[config.mode], `${v.name} is not in ${config.mode} mode`, types);
    report.delegated = await v.delegated();
  }
  must((await alice.tiles()) === 2, 'alice does not see two tiles', await alice.tiles());

  // From outside, as another member of the room sees it.
  const room = new URLSearchParams(link.slice(link.indexOf('?') + 1)).get('roomId');
  await account.join(room);
  const isBob = (m) => m.startsWith(`${account.user} `);
  await poll('both are members of the call', async (saw) => {
    const members = await account.callMembers(room);
    saw(members);
    return members.length === 2 && members.some(isBob);
  });

  step(config.restart ? 'the page of bob and the server die' : 'the page of bob dies');
  const died = Date.now();
  await kill(bobsBrowser, bob.page);
  if (config.restart) {
    await ask('restart');
    const back = Date.now();
    await poll('the membership of bob ends after the restart', async (saw) => {
      const members = await account.callMembers(room);
      saw(members);
      return !members.some(isBob);
    }, { ms: 30_000, every: 500 });
    report.goneAfterReady = (Date.now() - back) / 1000;
    // Alice's page finds its way back by itself.
    await poll('the tile of bob goes from alice', async (saw) => {
      const n = await alice.tiles();
      saw(n);
      return n === 1;
    }, { ms: 60_000 });
  } else {
    await poll('the tile of bob goes from alice', async (saw) => {
      const n = await alice.tiles();
      saw(`${n} tiles, members: ${await account.callMembers(room)}`);
      return n === 1;
    }, { ms: 25_000 - (Date.now() - died) });
    report.gone = (Date.now() - died) / 1000;
    must(!(await account.callMembers(room)).some(isBob), 'bob is still a member of the call');
  }

  // Alice is still in the call and leaves properly.
  await poll('alice is still a member', async (saw) => {
    const members = await account.callMembers(room);
    saw(members);
    return members.length === 1;
  });
  await alice.leave();
  await poll('the call is empty', async () => (await account.callMembers(room)).length === 0);
  return report;
});
