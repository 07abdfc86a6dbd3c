// LiveKit's server SDK for Node makes trunks and dispatch rules and calls
// telephones: one that is busy, one that rings for ever, one that may not be called.
import { createSocket } from 'node:dgram';
import { RoomServiceClient, SipCallError, SipClient } from 'livekit-server-sdk';
import { must, poll, run, step } from '../browser/lib.mjs';

// refuser is a telephone that answers each INVITE with a status, or only rings.
async function refuser(status) {
  const socket = createSocket('udp4');
  const seen = [];
  let invite;
  socket.on('message', (data, from) => {
    const message = data.toString();
    const method = message.slice(0, message.indexOf(' '));
    seen.push(method);
    const send = (request, answer) => {
      const headers = request.split('\r\n').filter((l) => /^(via|from|call-id|cseq|to)\s*:/i.test(l))
        .map((l) => (/^to\s*:/i.test(l) && !/;tag=/.test(l) && !answer.startsWith('100') ? `${l};tag=refuser` : l));
      socket.send([`SIP/2.0 ${answer}`, ...headers, 'Contact: <sip:refuser@127.0.0.1>', 'Content-Length: 0', '', ''].join('\r\n'), from.port, from.address);
    };
    if (method === 'INVITE') {
      invite = message;
      for (const answer of ['100 Trying', '180 Ringing', ...(status ? [status] : [])]) send(message, answer);
    } else if (method === 'CANCEL') {
      send(message, '200 OK');
      send(invite, '487 Request Terminated');
    }
  });
  await new Promise((ready) => socket.bind(0, '127.0.0.1', ready));
  return { port: socket.address().port, seen, close: () => socket.close() };
}

// fails returns the error that a promise is rejected with.
const fails = async (what, promise) => {
  let value;
  try {
    value = await promise;
  } catch (e) {
    return e;
  }
  throw new Error(`${what} went well: ${JSON.stringify(value)}`);
};

await run(async (config) => {
  const host = config.server.livekit_url.replace(/^ws/, 'http');
  const secret = config.wrongSecret ? 'x'.repeat(40) : config.server.api_secret;
  const sip = new SipClient(host, config.server.api_key, secret);

  step('a trunk is made and listed');
  const busy = await refuser('486 Busy Here');
  const trunk = await sip.createSipOutboundTrunk('busy', `127.0.0.1:${busy.port}`, ['+4930200'], { transport: 1, authUsername: 'u', authPassword: 'p' });
  must(trunk.sipTrunkId.startsWith('ST_') && trunk.authPassword === '', 'the trunk', trunk);
  const listed = await sip.listSipOutboundTrunk({ trunkIds: [trunk.sipTrunkId] });
  must(listed.length === 1 && listed[0].name === 'busy' && listed[0].numbers[0] === '+4930200', 'the list', listed);
  const renamed = await sip.updateSipOutboundTrunkFields(trunk.sipTrunkId, { name: 'renamed' });
  must(renamed.name === 'renamed' && renamed.authUsername === 'u', 'the changed trunk', renamed);

  step('rules are made, listed and deleted');
  const inbound = await sip.createSipInboundTrunk('in', ['+4930201'], { allowedAddresses: ['127.0.0.9'] });
  const rule = await sip.createSipDispatchRule({ type: 'direct', roomName: 'standup', pin: '4711' }, { name: 'r', trunkIds: [inbound.sipTrunkId] });
  const again = await fails('the same rule again', sip.createSipDispatchRule({ type: 'direct', roomName: 'other', pin: '4711' }, { trunkIds: [inbound.sipTrunkId] }));
  must(again.code === 'invalid_argument', 'the same rule again', again);
  const rules = await sip.listSipDispatchRule();
  must(rules.length === 1 && rules[0].sipDispatchRuleId === rule.sipDispatchRuleId && rules[0].rule.rule.value.roomName === 'standup', 'the rules', rules);
  await sip.deleteSipDispatchRule(rule.sipDispatchRuleId);
  await sip.deleteSipTrunk(inbound.sipTrunkId);

  step('a busy telephone');
  const call = { participantIdentity: 'phone', waitUntilAnswered: true, ringingTimeout: 20 };
  const refused = await fails('the call', sip.createSipParticipant(trunk.sipTrunkId, '+4930123', 'room', call));
  must(refused instanceof SipCallError && refused.sipStatusCode === 486 && refused.sipStatus === 'Busy Here', 'the error', refused);

  step('a telephone that nobody answers');
  const silent = await refuser();
  const other = await sip.createSipOutboundTrunk('silent', `127.0.0.1:${silent.port}`, ['+4930200'], { transport: 1 });
  const late = await fails('the call', sip.createSipParticipant(other.sipTrunkId, '+4930123', 'room', { ...call, ringingTimeout: 2 }));
  must(late instanceof SipCallError && [408, 480, 487].includes(late.sipStatusCode), 'the error', late);
  await poll('the call is taken back', () => silent.seen.includes('CANCEL'));

  step('a telephone that rings is in the room, and removing it hangs up');
  const ringing = await sip.createSipParticipant(other.sipTrunkId, '+4930123', 'room', { participantIdentity: 'ringing', participantName: 'R' });
  must(ringing.sipCallId.startsWith('SCL_') && ringing.participantId.startsWith('PA_') && ringing.participantIdentity === 'ringing', 'the answer', ringing);
  const rooms = new RoomServiceClient(host, config.server.api_key, secret);
  await poll('it is listed', async (saw) => {
    const all = await rooms.listParticipants('room');
    saw(all.map((p) => [p.identity, p.attributes]));
    return all.some((p) => p.identity === 'ringing' && p.attributes['sip.callStatus'] === 'ringing');
  });
  const before = silent.seen.length;
  await rooms.removeParticipant('room', 'ringing');
  await poll('the ringing ends', () => silent.seen.slice(before).includes('CANCEL'));

  step('a number that may not be called');
  const forbidden = await fails('the call', sip.createSipParticipant(trunk.sipTrunkId, '+33123456789', 'room', call));
  must(forbidden.code === 'permission_denied' && forbidden.sipStatusCode === undefined, 'the error', forbidden);

  busy.close();
  silent.close();
  return { refused: refused.message };
});
