// Our client and Element Call in one encrypted room that our client has made:
// without a password in the link, each sends the other its media key.
import { hears, launch, must, poll, run, shows, sources, step } from './lib.mjs';
import { Visitor, site } from './element.mjs';
import { Person } from './hall.mjs';
import { Account } from './matrix.mjs';

const { red, green } = sources;

await run(async (config) => {
  const base = await site(config);
  const alice = await Person.open(config, await launch(config, red), 'alice');
  await alice.login(config.server.users[0]);
  const link = await alice.create({ name: 'Both of us', access: 'anyone' });
  const room = decodeURIComponent(new URL(link).pathname.split('/')[2]);
  await alice.start();

  const account = await Account.register(config.server, 'eve');
  const eve = await Visitor.open(config, await launch(config, green), base, 'eve');
  await eve.login(account);
  await eve.enter(`${base}/room/#/?roomId=${encodeURIComponent(room)}&viaServers=${encodeURIComponent(account.serverName)}`);

  await shows('alice sees eve', alice.page, [green]);
  await shows('eve sees alice', eve.page, [red]);
  await hears('alice hears eve', alice.page, [green], [red]);

  step('the keys went from device to device');
  must(eve.wire.some((r) => r.method === 'PUT' && r.path.includes('/sendToDevice/m.room.encrypted/')), 'Element Call sent no key');
  must((await alice.get('call').getAttribute('data-encrypted')) === 'true', 'the call is not encrypted');
  const tile = await alice.tile(account.user);
  must(tile && tile.plain !== 'true', 'our client takes Element Call for unencrypted', tile);

  await eve.leave();
  await poll('eve goes from alice', async (saw) => {
    const tiles = await alice.tiles();
    saw(tiles);
    return tiles.length === 1;
  }, { ms: 20_000 });
  return {};
});
