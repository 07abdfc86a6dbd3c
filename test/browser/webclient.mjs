// Three people in one room through our own client: a user, somebody who has
// just registered, and a guest, each with a camera and a tone of their own.
import { hears, launch, must, poll, run, shows, sleep, sources, step } from './lib.mjs';
import { Person } from './hall.mjs';

const { red, green, blue } = sources;

await run(async (config) => {
  const alice = await Person.open(config, await launch(config, red), 'alice');
  await alice.login(config.server.users[0]);
  const link = await alice.create({ name: 'Standup', access: 'anyone' });
  await alice.start();
  const bob = await Person.open(config, await launch(config, green), 'bob');
  await bob.register();
  await bob.follow(link);
  const carol = await Person.open(config, await launch(config, blue), 'carol');
  await carol.follow(link, 'Carol');
  const people = [[alice, red], [bob, green], [carol, blue]];
  for (const [p] of people) must((await p.get('call').getAttribute('data-encrypted')) === 'true', `the call of ${p.name} is not encrypted`);
  carol.user = await poll('alice sees three tiles', async (saw) => {
    const tiles = await alice.tiles();
    saw(tiles);
    const other = tiles.map((t) => t.split(' ')[0]).find((u) => u !== alice.user && u !== bob.user);
    return tiles.length === 3 && other;
  });

  for (const [p, own] of people) {
    const others = people.filter(([q]) => q !== p).map(([, s]) => s);
    await shows(`${p.name} sees the other two`, p.page, others);
    await hears(`${p.name} hears the other two`, p.page, others, [own]);
  }

  step('bob shares the screen');
  await bob.get('call-share').click();
  for (const p of [alice, carol]) {
    await poll(`${p.name} sees the screen of bob`, async (saw) => {
      const tile = await p.tile(bob.user, 'screen');
      saw(tile);
      return tile && tile.width > 0 && tile.frames > 0;
    });
  }
  await bob.get('call-share').click();
  for (const p of [alice, carol]) await poll(`the screen of bob goes from ${p.name}`, async () => !(await p.tile(bob.user, 'screen')));

  step('bob mutes');
  await bob.get('call-mute').click();
  for (const p of [alice, carol]) {
    await poll(`${p.name} sees that bob is muted`, async (saw) => {
      const tile = await p.tile(bob.user);
      saw(tile);
      return tile?.muted === 'true';
    });
  }
  await hears('alice hears carol alone', alice.page, [blue], [green, red]);
  await bob.get('call-mute').click();
  await poll('alice sees that bob speaks again', async () => (await alice.tile(bob.user))?.muted === 'false');
  await hears('alice hears both again', alice.page, [green, blue], [red]);

  step('carol leaves');
  await carol.get('call-leave').click();
  await carol.get('after').waitFor({ timeout: 20_000 });
  for (const p of [alice, bob]) {
    await poll(`carol goes from ${p.name}`, async (saw) => {
      const tiles = await p.tiles();
      saw(tiles);
      return tiles.length === 2 && !tiles.some((t) => t.startsWith(`${carol.user} `));
    }, { ms: 20_000 });
  }

  // Now bob is all that alice receives, and the other way round.
  step('alice removes bob');
  await alice.get('participants').click();
  await alice.page.getByTestId('people').getByTestId(`kick-${bob.user}`).click();
  const answered = alice.page.waitForResponse((r) => r.url().endsWith('/kick'), { timeout: 20_000 });
  await alice.get('ask-yes').click();
  must((await answered).status() === 200, 'the kick was refused');
  const at = Date.now();
  const packets = (p) => p.page.evaluate(async () => (await window.__probe.inbound()).reduce((n, s) => n + s.packets, 0));
  await sleep(at + 1_000 - Date.now());
  step('no packets a second after the kick');
  const before = [await packets(alice), await packets(bob)];
  await sleep(2_000);
  const after = [await packets(alice), await packets(bob)];
  must(before.every((n, i) => n === after[i]), 'packets go on', { before, after });
  await bob.get('after').waitFor({ timeout: 10_000 });
  must((await bob.get('after').getAttribute('data-reason')) === 'removed', 'bob is not told that he was removed', await bob.get('after').getAttribute('data-reason'));
  await poll('bob goes from alice', async () => (await alice.tiles()).length === 1, { ms: 10_000 });
  return { link: link.replace(/^https?:\/\/[^/]+/, '') };
});
