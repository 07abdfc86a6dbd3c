// Package phones drives the telephone gateway with programs we did not write:
// baresip as the telephone, SIPp for exact sequences of messages, Kamailio as
// the provider, Chromium with livekit-client and Element Call as the other
// people in the room. `make test-tools` installs them.
//
// How a test knows what it claims: every phone and every browser says one tone
// that nobody else says, or a sentence of its own; what the others hear is
// recorded and measured (sound.go). Each measure is shown to fail where there is
// nothing to hear.
package phones
