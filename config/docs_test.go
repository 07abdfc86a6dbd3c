package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDocumentedTelephones: what docs/telephones.md tells people to write is what
// the server takes, put together as the page puts it.
func TestDocumentedTelephones(t *testing.T) {
	page, err := os.ReadFile("../docs/telephones.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for rest := string(page); ; {
		_, after, ok := strings.Cut(rest, "```yaml\n")
		if !ok {
			break
		}
		block, next, _ := strings.Cut(after, "```")
		blocks, rest = append(blocks, block), next
	}
	if len(blocks) != 2 {
		t.Fatalf("the page has %d YAML blocks, this test knows 2", len(blocks))
	}
	password := filepath.Join(t.TempDir(), "sip-password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The second block is one more trunk for the list of the first.
	head, rules, ok := strings.Cut(blocks[0], "  dispatch:")
	if !ok {
		t.Fatal("the first block has no dispatch")
	}
	text := strings.ReplaceAll(head+blocks[1]+"  dispatch:"+rules, "/etc/trunkhall/sip-password", password)
	path := filepath.Join(t.TempDir(), "trunkhall.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(path, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
	if len(cfg.SIP.Trunks) != 2 || cfg.SIP.Trunks[0].Auth.Password != "secret" || cfg.SIP.Trunks[0].Register.AOR == "" || len(cfg.SIP.Dispatch) != 1 {
		t.Errorf("read %+v", cfg.SIP.Trunks)
	}
}
