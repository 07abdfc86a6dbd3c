// Telephones in our own web client: a room's number and PIN, callers in the
// lobby and in the call, calls out from the keypad, and the operator's page.
import { join } from 'node:path';
import { ask, hears, launch, must, poll, run, step } from '../browser/lib.mjs';
import { Person } from '../browser/hall.mjs';

const soon = { timeout: 40_000 };

await run(async (config) => {
  const alice = await Person.open(config, await launch(config, config.alice), 'alice', { viewport: { width: 1280, height: 800 } });
  const picture = (p, name) => p.page.screenshot({ path: join(config.output, `${name}.png`) });
  const phones = async () =>
    alice.page.evaluate(() => [...document.querySelectorAll('[data-testid=tile][data-phone=true]')].map((e) => ({ ...e.dataset, name: e.getAttribute('aria-label') })));
  const phone = (what, check) =>
    poll(what, async (saw) => {
      const list = await phones();
      saw(list);
      return check(list);
    });

  await alice.login(config.server.users[0]);
  await alice.create({ name: 'Standup', access: 'members' });

  step('the room gets a PIN');
  await alice.get('room-phone').click(soon);
  await alice.get('phone-sheet').waitFor(soon);
  if (await alice.get('dial-in-pin').count() === 0) await alice.get('pin-new').click(soon);
  await alice.get('dial-in-pin').waitFor(soon);
  must((await alice.get('dial-in-number').getAttribute('href')) === `tel:${config.number}`, 'another number is shown', await alice.get('dial-in-number').getAttribute('href'));
  await alice.get('phone-e2ee').click(soon);
  await poll('the room takes telephones', async () => alice.get('phone-e2ee').isChecked());
  const pin = (await alice.get('dial-in-pin').innerText()).replaceAll(' ', '');
  must(/^[0-9]{6,}$/.test(pin), 'this is no PIN', pin.length);
  await picture(alice, 'room');

  await alice.start();
  must((await phones()).length === 0, 'there is a telephone before one has called', await phones());

  step('a telephone comes in');
  await ask('dial', pin);
  await phone('alice sees the telephone', (l) => l.length === 1 && l[0].waiting === 'false');
  must((await alice.get('tile-beyond').count()) === 1, 'alice is not told that it is not encrypted beyond the server');
  await hears('alice hears the telephone', alice.page, [config.phone], [config.alice]);
  const heard = await ask('heard');
  must(!heard, 'the telephone does not hear alice', heard);

  step('it mutes itself and raises the hand');
  await ask('press', '*6');
  await phone('alice sees that it is muted', (l) => l[0]?.muted === 'true');
  await ask('press', '*5');
  await phone('alice sees its hand', (l) => l[0]?.hand === 'true');
  await picture(alice, 'call');
  await ask('press', '*6');
  await phone('it speaks again', (l) => l[0]?.muted === 'false');

  step('the next one waits in the lobby');
  await alice.get('participants').click();
  await alice.get('call-phones').locator('summary').click(soon);
  await alice.get('phone-lobby').click(soon);
  await poll('the lobby is open', async () => alice.get('phone-lobby').isChecked());
  await ask('second', pin);
  await alice.get('phone-waiting').waitFor(soon);
  must((await phones()).length === 1, 'it is in the call already', await phones());
  await picture(alice, 'lobby');
  await alice.get('phone-admit').click(soon);
  await phone('alice sees both', (l) => l.length === 2);

  step('a busy number');
  await alice.get('dial-number').fill(config.busy);
  await alice.get('dial-call').click();
  const placed = (cause, state) =>
    poll(`the call is ${state} ${cause}`, async (saw) => {
      const all = await alice.page.getByTestId('placed-call').evaluateAll((list) => list.map((e) => ({ ...e.dataset, text: e.textContent })));
      saw(all);
      return all.find((p) => p.state === state && p.cause === cause);
    });
  await placed('busy', 'ended');

  step('a number that may not be called');
  await alice.get('dial-number').fill('+49900123456');
  await alice.get('dial-call').click();
  await poll('alice is told so', async (saw) => {
    const text = await alice.get('add-phone').locator('.error').allInnerTexts();
    saw(text);
    return text.some((x) => x.trim() !== '');
  });

  step('a number that answers');
  const key = (c) => alice.get('add-phone').locator(`[data-key="${c}"]`);
  await alice.get('dial-number').fill('');
  await key('0').click({ delay: 900 }); // held down it is a plus
  for (const c of config.answering.slice(1)) await key(c).click();
  must((await alice.get('dial-number').inputValue()) === config.answering, 'the keypad wrote another number', await alice.get('dial-number').inputValue());
  await alice.get('dial-call').click();
  await placed('', 'confirmed');
  await phone('alice sees three telephones', (l) => l.length === 3);
  await picture(alice, 'placed');
  await alice.page.getByTestId('placed-call').filter({ hasNotText: /busy/i }).getByTestId('keypad').first().click();
  await alice.get('keypad-dialog').locator('[data-key="1"]').click(soon);
  await alice.get('keypad-dialog').locator('[data-key="#"]').click();
  const pressed = await ask('pressed');
  must(!pressed, 'the digits did not arrive', pressed);
  await alice.page.keyboard.press('Escape');
  await alice.get('placed-hangup').click(soon);
  await phone('it is gone', (l) => l.length === 2);

  step('alice is no operator');
  const other = await Person.open(config, await launch(config, null), 'operator', { viewport: { width: 1280, height: 900 } });
  await other.login(config.server.users[1]);
  await other.page.goto(`${other.base}/operator`);
  await other.get('operator-refused').waitFor(soon);
  must((await other.get('legs').count()) === 0, 'somebody who is no administrator sees the calls');

  step('the operator looks');
  await other.page.goto(other.base);
  await other.get('sign-out').click(soon);
  await other.get('ask-yes').click(soon);
  await other.login({ user_id: 'operator', password: 'operator secret' });
  await other.page.goto(`${other.base}/operator`);
  await poll('the operator sees two calls', async (saw) => {
    const n = await other.get('legs').getAttribute('data-count').catch(() => null);
    saw(n);
    return n === '2';
  });
  must(Number(await other.get('trunks').getAttribute('data-count')) >= 5, 'trunks are missing');
  must(Number(await other.get('records').getAttribute('data-count')) >= 2, 'past calls are missing');
  await poll('the quality of a call is known', async (saw) => {
    const text = await other.get('legs').locator('.mos').allInnerTexts();
    saw(text);
    return text.some((x) => Number.parseFloat(x) > 3);
  });
  await picture(other, 'operator');
  step('the operator hangs up');
  await other.get('leg-hangup').first().click();
  await other.get('ask-yes').click(soon);
  await poll('the operator sees one call', async () => (await other.get('legs').getAttribute('data-count')) === '1');
  await phone('alice sees one telephone', (l) => l.length === 1);
  return {};
});
