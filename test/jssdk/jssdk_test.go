// Package jssdk drives the homeserver with matrix-js-sdk in Node, and the
// telephones with LiveKit's server SDK.
package jssdk

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

func script() harness.Script {
	return harness.Script{File: "jssdk/two-clients.mjs", Timeout: 2 * time.Minute}
}

func TestTwoClientsInAnEncryptedRoom(t *testing.T) {
	harness.Start(t).Run(t, script())
}

func TestTwoClientsNeedAServer(t *testing.T) {
	s := harness.Start(t)
	s.Kill()
	if _, err := s.Try(t, script()); err == nil || !strings.Contains(err.Error(), "alice registers") {
		t.Fatalf("without a server: got %v", err)
	}
}

func serverSDK(wrongSecret bool) harness.Script {
	return harness.Script{File: "jssdk/server-sdk.mjs", Timeout: 2 * time.Minute, Config: map[string]any{"wrongSecret": wrongSecret}}
}

// withPhones starts a server with a telephone gateway and no trunks.
func withPhones(t *testing.T) *harness.Server {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().String()
	conn.Close()
	return harness.StartWith(t, harness.Options{Config: fmt.Sprintf(`
sip:
  enabled: true
  listen: ["udp://%s"]
  bind_ip: 127.0.0.1
  external_ip: 127.0.0.1
  outbound: {allow_prefixes: ["+4930"]}
`, addr)})
}

func TestTelephonesByLiveKitsServerSDK(t *testing.T) {
	withPhones(t).Run(t, serverSDK(false))
}

func TestTelephonesNeedTheSecret(t *testing.T) {
	if _, err := withPhones(t).Try(t, serverSDK(true)); err == nil || !strings.Contains(err.Error(), "a trunk is made") {
		t.Fatalf("with a wrong secret: got %v", err)
	}
}
