// Package mautrix drives the homeserver with mautrix-go and its Olm in Go. Its
// tests need the build tag goolm.
package mautrix
