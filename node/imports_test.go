package node

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/trunkhall/trunkhall"

// allowed says which of our own packages a folder may import. A folder without
// a row may not exist: add the row when you add the folder, and read
// docs/architecture.md first. Test files follow the same rules.
var allowed = map[string][]string{
	"call":       nil,
	"matrix":     nil,
	"sfu":        {"call"},
	"turn":       {"call"},
	"audio":      nil,
	"storage":    {"call", "matrix"},
	"homeserver": {"call", "matrix"},
	"signaling":  {"call", "matrix", "sfu"},
	"web":        nil,
	"config":     {"call", "homeserver", "matrix", "sfu", "signaling", "sip", "turn", "web"},
	"node":       {"call", "config", "homeserver", "matrix", "sfu", "signaling", "sip", "storage", "turn", "web"},
	"sfu/bench":  {"call", "sfu"},
	"deploy":     {"config"},

	"sip":         {"call", "sfu", "audio", "sip"},
	"sip/dialog":  {"call"},
	"sip/media":   {"call", "audio"},
	"sip/bridge":  {"call", "sfu", "audio"},
	"sip/trunk":   {"call", "sip/dialog"},
	"sip/numbers": {"call"},
	"sip/guard":   {"call"},
	"sip/ledger":  {"call"},
	"sip/bench":   {"call", "sfu", "audio", "sip"},
}

// free are the folders that may import every package of ours: commands, and the
// tests that run whole nodes.
var free = []string{"cmd", "test"}

// inTests are the imports of ours that only a folder's tests may have: an
// implementation is tried against its real reader.
var inTests = map[string][]string{
	"storage":    {"homeserver", "signaling"},
	"homeserver": {"storage"},
	"signaling":  {"storage", "homeserver"},
}

// fenced says which folders alone may import a third-party module, in product
// code. What is not named here may be imported anywhere.
var fenced = map[string][]string{
	"github.com/matrix-org/gomatrixserverlib": {"matrix"},
	"github.com/pion/webrtc":                  {"sfu", "sfu/bench"},
	"github.com/pion/ice":                     {"sfu"},
	"github.com/pion/dtls":                    {"sfu", "sip/media"},
	"github.com/pion/srtp":                    {"sfu", "sip/media"},
	"github.com/pion/sdp":                     {"sfu"},
	"github.com/emiago/sipgo":                 {"sip", "sip/dialog", "sip/trunk"},
	"github.com/nyaruka/phonenumbers":         {"sip/numbers"},
	"github.com/gobwas/ws":                    {"sip/dialog"},
	"github.com/prometheus/client_golang":     {"web"},
	"github.com/pion/sctp":                    {"sfu"},
	"github.com/pion/datachannel":             {"sfu"},
	"github.com/pion/interceptor":             {"sfu", "sfu/bench"},
	"github.com/pion/rtp":                     {"sfu", "sfu/bench", "audio", "sip"},
	"github.com/pion/rtcp":                    {"sfu", "sfu/bench", "sip/media"},
	"github.com/pion/turn":                    {"turn"},
	"github.com/thesyncim/gopus":              {"audio"},
	"modernc.org/sqlite":                      {"storage"},
	"github.com/pressly/goose":                {"storage"},
	"github.com/livekit/protocol":             {"signaling"},
	"github.com/coder/websocket":              {"signaling"},
	"maunium.net/go/mautrix":                  {"signaling"},
	"golang.org/x/crypto/argon2":              {"homeserver"},
	"github.com/goccy/go-yaml":                {"config"},
	"gopkg.in/yaml.v3":                        nil,
	"go.yaml.in/yaml":                         nil,
}

// TestImports reads the source files themselves: a test that asks 'go list' is
// answered from the test cache and does not see a new import.
func TestImports(t *testing.T) {
	seen := 0
	walkGo(t, "..", func(dir, name string, imports []string) {
		seen++
		isTest := strings.HasSuffix(name, "_test.go")
		for _, imp := range imports {
			if complaint := judge(dir, isTest, imp); complaint != "" {
				t.Errorf("%s/%s: %s", dir, name, complaint)
			}
		}
	})
	if seen < 20 {
		t.Errorf("only %d Go files were found: the walk looks in the wrong place", seen)
	}
}

// TestJudge proves that the rules can say no.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		dir    string
		isTest bool
		imp    string
		bad    bool
	}{
		{"the SFU knows no Matrix", "sfu", false, module + "/matrix", true},
		{"the homeserver knows no WebRTC", "homeserver", false, "github.com/pion/webrtc/v4", true},
		{"the homeserver does not reach for its storage", "homeserver", false, module + "/storage", true},
		{"but its tests may", "homeserver", true, module + "/storage", false},
		{"room rules stay behind the matrix seam", "homeserver", false, "github.com/matrix-org/gomatrixserverlib/spec", true},
		{"the matrix seam uses them", "matrix", false, "github.com/matrix-org/gomatrixserverlib", false},
		{"a package nobody planned", "utils", false, "fmt", true},
		{"signaling joins rooms to the SFU", "signaling", false, module + "/sfu", false},
		{"a leaf of the SFU imports no sibling of its parent", "sfu/packetmap", false, module + "/call", true},
		{"but third-party rtp it may", "sfu/packetmap", false, "github.com/pion/rtp", false},
		{"web takes handlers only", "web", false, module + "/call", true},
		{"a prefix of a fenced name is another module", "web", false, "github.com/pion/turnkey", false},
		{"commands may import all", "cmd/trunkhall", false, module + "/node", false},
	} {
		if got := judge(c.dir, c.isTest, c.imp); (got != "") != c.bad {
			t.Errorf("%s: judge(%q, %q) = %q", c.name, c.dir, c.imp, got)
		}
	}
}

// judge returns what is wrong with a file in dir importing imp, or "".
func judge(dir string, isTest bool, imp string) string {
	top, _, nested := strings.Cut(dir, "/")
	if slices.Contains(free, top) {
		return ""
	}
	mine, known := allowed[dir]
	if !known {
		// A pure data structure may be a leaf one level down: it imports nothing
		// of ours (design of the folders, docs/architecture.md).
		if _, known = allowed[top]; !known || !nested {
			return "the folder is in no row of the import table"
		}
	}
	if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
		parent, _, _ := strings.Cut(ours, "/")
		switch {
		case slices.Contains(mine, ours), slices.Contains(mine, parent), parent == top && ours != top:
			return ""
		case ours == dir && isTest: // an external test package
			return ""
		case isTest && slices.Contains(inTests[top], parent):
			return ""
		}
		return "must not import " + ours
	}
	if isTest {
		return "" // tests drive us with what they like
	}
	for mod, dirs := range fenced {
		if imp != mod && !strings.HasPrefix(imp, mod+"/") {
			continue
		}
		if !slices.Contains(dirs, dir) && !slices.Contains(dirs, top) {
			return imp + " is fenced to " + strings.Join(dirs, ", ")
		}
	}
	return ""
}

// walkGo calls f for each Go file under root that belongs to this module.
func walkGo(t *testing.T, root string, f func(dir, name string, imports []string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			switch name := d.Name(); {
			case name == "testdata", name == "node_modules", name == "bin":
				return filepath.SkipDir
			case rel != "." && strings.HasPrefix(name, "."):
				return filepath.SkipDir
			case rel != "." && isModule(path):
				return filepath.SkipDir // a module of its own, for tests
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		var imports []string
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, imp)
		}
		f(filepath.ToSlash(filepath.Dir(rel)), d.Name(), imports)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}
