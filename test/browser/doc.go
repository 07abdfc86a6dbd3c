// Package browser drives a running Trunkhall with headless Chromium: with
// livekit-client, with our own web client and with Element Call. The tests run
// one after the other, since each wants the machine for itself.
package browser
