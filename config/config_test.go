package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/homeserver"
)

// TestDefaultFile keeps the file that people copy true: it says what applies
// anyway, and leaves nothing out.
func TestDefaultFile(t *testing.T) {
	cfg := Default()
	for _, s := range settings(&cfg) {
		s.value.SetZero()
	}
	if err := decode(&cfg, []byte(DefaultFile)); err != nil {
		t.Fatal(err)
	}
	want := Default()
	fromFile, defaults := settings(&cfg), settings(&want)
	for i, s := range defaults {
		got := fromFile[i].value
		if (got.Kind() == reflect.Slice || got.Kind() == reflect.Map) && got.Len() == 0 && s.value.Len() == 0 {
			continue // nil or empty is the same
		}
		if !reflect.DeepEqual(got.Interface(), s.value.Interface()) {
			t.Errorf("%s: the file says %v, the default is %v", s.path, got, s.value)
		}
	}

	mentioned := pathsIn(DefaultFile)
	for _, s := range defaults {
		if !slices.Contains(mentioned, s.path) {
			t.Errorf("%s is not in the file", s.path)
		}
	}
	for _, path := range secrets {
		if name := path[strings.LastIndex(path, ".")+1:] + "_file"; !strings.Contains(DefaultFile, name) {
			t.Errorf("%s is not in the file", name)
		}
	}
}

// pathsIn returns the key paths of a YAML text with two spaces of indent.
func pathsIn(text string) []string {
	var paths, sections []string
	for line := range strings.Lines(text) {
		key, _, ok := strings.Cut(strings.TrimRight(line, "\n"), ":")
		bare := strings.TrimLeft(key, " ")
		if !ok || strings.HasPrefix(bare, "#") || strings.HasPrefix(bare, "-") {
			continue
		}
		sections = append(sections[:min((len(key)-len(bare))/2, len(sections))], bare)
		paths = append(paths, strings.Join(sections, "."))
	}
	return paths
}

// TestDefaultFileExamples keeps the examples in the file true: they are accepted,
// and leave nothing out of what an element of a list can have.
func TestDefaultFileExamples(t *testing.T) {
	var example strings.Builder
	example.WriteString("sip:\n")
	for line := range strings.Lines(DefaultFile) {
		if text, ok := strings.CutPrefix(line, "  #| "); ok {
			example.WriteString("  " + text)
		}
	}
	cfg, err := Parse([]byte(example.String()))
	if err != nil {
		t.Fatalf("%v\n%s", err, example.String())
	}
	if len(cfg.SIP.Trunks) == 0 || len(cfg.SIP.Dispatch) < 4 {
		t.Fatalf("the examples are not found: %s", example.String())
	}
	for _, s := range settings(&cfg) {
		if !isList(s) || s.value.Len() == 0 {
			continue
		}
		for _, leaf := range leaves(s.value.Index(0), "") {
			key := leaf.path[strings.LastIndex(leaf.path, ".")+1:]
			if !regexp.MustCompile(`\b` + key + `:`).MatchString(example.String()) {
				t.Errorf("%s[].%s is not in the example", s.path, leaf.path)
			}
		}
	}
	for path, list := range listSecrets {
		for _, secret := range list {
			if name := secret[strings.LastIndex(secret, ".")+1:] + "_file"; !strings.Contains(DefaultFile, name) {
				t.Errorf("%s of %s is not in the file", name, path)
			}
		}
	}
}

func TestSecretsAreSettings(t *testing.T) {
	cfg := Default()
	all := settings(&cfg)
	for _, path := range secrets {
		if _, ok := find(all, path); !ok {
			t.Errorf("%s is no setting", path)
		}
	}
	for _, s := range all {
		looksSecret := regexp.MustCompile(`secret|password|api_key|_tokens?$`).MatchString(s.path)
		if looksSecret && !slices.Contains(secrets, s.path) {
			t.Errorf("%s looks like a secret but cannot be given as a file", s.path)
		}
	}
}

func TestEnvNamesDiffer(t *testing.T) {
	cfg := Default()
	names := envNames(settings(&cfg))
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("two settings share an environment variable: %v", names)
	}
}

func TestFile(t *testing.T) {
	cfg, err := Parse([]byte(`
data_dir: /var/lib/trunkhall
homeserver:
  server_name: example.org
  registration: token
  registration_tokens: [one, two]
web:
  drain_timeout: 1m30s
sfu:
turn: {enabled: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.DataDir != "/var/lib/trunkhall" || cfg.Homeserver.ServerName != "example.org" ||
		!slices.Equal(cfg.Homeserver.RegistrationTokens, []string{"one", "two"}) ||
		cfg.Web.DrainTimeout != 90*time.Second || cfg.TURN.Enabled {
		t.Errorf("%+v", cfg)
	}
	if want := Default(); cfg.SFU.UDPPort != want.SFU.UDPPort || cfg.Web.Listen != want.Web.Listen || cfg.TURN.Port != want.TURN.Port {
		t.Errorf("what the file leaves out lost its default: %+v", cfg)
	}
}

func TestComplaints(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"a typing error", "web:\n  lisen: x", []string{"line 2", "web.lisen: unknown; is web.listen meant?"}},
		{"a key of nothing", "frobnicate: 1", []string{"frobnicate: unknown"}},
		{"a section in a section", "web:\n  sfu:\n    udp_port: 1", []string{"web.sfu: unknown"}},
		{"a text for a number", "sfu:\n  udp_port: many", []string{"line 2: sfu.udp_port: must be a whole number"}},
		{"a number for a duration", "web:\n  drain_timeout: [5]", []string{"web.drain_timeout: must be a duration"}},
		{"a list for a section", "web: [1]", []string{"web: must be a section"}},
		{"a list for the file", "- 1", []string{"the file: must be a section"}},
		{"the same key twice", "web:\n  listen: ':1'\n  listen: ':2'", []string{"listen"}},
		{"the same section twice", "web:\n  listen: ':1'\nweb:\n  listen: ':2'", []string{"web"}},
		{"two documents", "data_dir: a\n---\ndata_dir: b", []string{"second document"}},
		{"broken YAML", "web: {", []string{"web"}},
		{"several at once", "data_dir: ''\nweb:\n  listen: x\nsfu:\n  udp_port: 70000", []string{"data_dir", "web.listen", "sfu.udp_port"}},
		{"two on one port", "sfu:\n  tcp_port: 8008", []string{"sfu.tcp_port: takes port 8008, which web.listen takes too"}},
		{"a port among the relays'", "sfu:\n  udp_port: 40500", []string{"turn.relay_port_min"}},
		{"a public URL with a slash", "public_url: https://example.org/", []string{"public_url"}},
		{"a public URL that is none", "public_url: example.org", []string{"public_url"}},
		{"an unknown log level", "log: {level: loud}", []string{"log.level"}},
		{"a secret file that is not there", "turn:\n  secret_file: /nonexistent/x", []string{"turn.secret_file", "/nonexistent/x"}},
		{"a typing error in a trunk", "sip:\n  trunks:\n    - id: a\n      directoin: both", []string{"sip.trunks", "directoin"}},
		{"a trunk that may call nothing", "sip:\n  trunks: [{id: a, direction: outbound, targets: ['sip:x']}]", []string{"sip.trunks[0] (a).allow_prefixes"}},
		{"a trunk that lets everybody in", "sip:\n  trunks: [{id: a, direction: inbound}]", []string{"sip.trunks[0] (a).inbound"}},
		{"a network that is none", "sip:\n  trunks: [{id: a, direction: inbound, inbound: {cidrs: [example.org]}}]", []string{"inbound.cidrs[0]"}},
		{"a codec nobody knows", "sip:\n  trunks: [{id: a, direction: inbound, inbound: {cidrs: [192.0.2.1]}, codecs: [GSM]}]", []string{"codecs[0]", "GSM"}},
		{"a rule to nowhere", "sip:\n  dispatch: [{match: {to: '+49'}, action: {type: room}}]", []string{"sip.dispatch[0].action.room"}},
		{"phones among the relays", "sip:\n  enabled: true\n  rtp_ports: 39000-41000", []string{"sip.rtp_ports", "turn.relay_port_min"}},
		{"SIP on the port of the web", "sip:\n  enabled: true\n  listen: ['tcp://0.0.0.0:8008']", []string{"sip.listen[0]", "web.listen"}},
		{"TLS without a certificate", "sip:\n  enabled: true\n  listen: ['tls://0.0.0.0:5061']", []string{"sip.tls_cert_file"}},
		{"a password file that is not there", "sip:\n  trunks: [{id: a, auth: {username: u, password_file: /nonexistent/x}}]", []string{"sip.trunks[0].auth.password_file", "/nonexistent/x"}},
		{"a file for what is no secret", "homeserver:\n  server_name_file: /x", []string{"homeserver.server_name_file: unknown"}},
	} {
		_, err := Parse([]byte(c.text))
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", c.name, err, want)
			}
		}
	}
}

func TestSamePortOfTwoProtocols(t *testing.T) {
	if _, err := Parse([]byte("sfu: {udp_port: 7881, tcp_port: 7881}")); err != nil {
		t.Errorf("UDP and TCP do not share ports: %v", err)
	}
	if _, err := Parse([]byte("sfu: {udp_port: 0, tcp_port: 0}\nturn: {port: 0}\nweb: {listen: ':0'}")); err != nil {
		t.Errorf("any free port: %v", err)
	}
}

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := write("secret", strings.Repeat("s", 40)+"\n")
	tokens := write("tokens", "one\ntwo\n")
	empty := write("empty", "\n")

	cfg, err := Parse([]byte("turn:\n  secret_file: " + secret +
		"\nhomeserver:\n  registration: token\n  registration_tokens_file: " + tokens))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.TURN.Secret != strings.Repeat("s", 40) {
		t.Errorf("secret %q", cfg.TURN.Secret)
	}
	if !slices.Equal(cfg.Homeserver.RegistrationTokens, []string{"one", "two"}) {
		t.Errorf("tokens %q", cfg.Homeserver.RegistrationTokens)
	}
	if _, err := Parse([]byte("turn:\n  secret: x\n  secret_file: " + secret)); err == nil {
		t.Error("a secret given twice was accepted")
	}
	if _, err := Parse([]byte("turn:\n  secret_file: " + empty)); err == nil {
		t.Error("an empty secret file was accepted")
	}
}

// TestListSecrets reads secrets inside lists from files and from the environment.
func TestListSecrets(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "trunkhall.yaml")
	password := filepath.Join(dir, "password")
	text := "sip:\n  trunks:\n    - id: a\n      direction: inbound\n      inbound: {digest: true}\n      auth: {username: u, password_file: " + password + "}\n"
	for name, content := range map[string]string{file: text, password: "one\n", password + "2": "two\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.SIP.Trunks[0].Auth.Password; got != "one" {
		t.Errorf("password %q", got)
	}
	environ := []string{
		"TRUNKHALL_SIP_TRUNKS_0_AUTH_PASSWORD_FILE=" + password + "2",
		"TRUNKHALL_SIP_TRUNKS_1_ID=b",
		"TRUNKHALL_SIP_TRUNKS_1_DIRECTION=inbound",
		"TRUNKHALL_SIP_TRUNKS_1_INBOUND_CIDRS=192.0.2.1,192.0.2.2",
		"TRUNKHALL_SIP_LIMITS_NIGHT_FROM=22:00",
		"TRUNKHALL_SIP_LIMITS_NIGHT_TO=06:00",
	}
	if cfg, err = Load(file, environ); err != nil {
		t.Fatal(err)
	}
	if got := cfg.SIP.Trunks; len(got) != 2 || got[0].Auth.Password != "two" || got[1].ID != "b" || len(got[1].In.CIDRs) != 2 {
		t.Errorf("%+v", got)
	}
	if cfg.SIP.Limits.Night.From != "22:00" {
		t.Errorf("night %+v", cfg.SIP.Limits.Night)
	}
	if unknown := UnknownVariables(append(environ, "TRUNKHALL_SIP_TRUNKS_0_AUTH_PASWORD=x")); !slices.Equal(unknown, []string{"TRUNKHALL_SIP_TRUNKS_0_AUTH_PASWORD"}) {
		t.Errorf("unknown: %q", unknown)
	}
	if _, err := Parse([]byte(strings.Replace(text, "password_file", "password: x, password_file", 1))); err == nil {
		t.Error("a password given twice was accepted")
	}
}

func TestEnvironment(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "trunkhall.yaml")
	if err := os.WriteFile(file, []byte("web:\n  listen: ':1'\nhomeserver:\n  server_name: file.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("k", 50)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(file, []string{
		"HOME=/root",
		"TRUNKHALL_WEB_LISTEN=:2",
		"TRUNKHALL_WEB_DRAIN_TIMEOUT=7s",
		"TRUNKHALL_SFU_NODE_IPS=192.0.2.7, 2001:db8::7",
		"TRUNKHALL_SFU_UDP_PORT=7000",
		"TRUNKHALL_HOMESERVER_GUESTS=false",
		"TRUNKHALL_HOMESERVER_REGISTRATION=open",
		"TRUNKHALL_SIGNALING_API_SECRET_FILE=" + secret,
		"TRUNKHALL_PORT=tcp://10.0.0.1:80",
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Web.Listen != ":2" || cfg.Web.DrainTimeout != 7*time.Second || cfg.SFU.UDPPort != 7000 ||
		cfg.Homeserver.Guests || cfg.Homeserver.Registration != homeserver.RegistrationOpen ||
		!slices.Equal(cfg.SFU.NodeIPs, []string{"192.0.2.7", "2001:db8::7"}) ||
		cfg.Signaling.APISecret != strings.Repeat("k", 50) {
		t.Errorf("%+v", cfg)
	}
	if cfg.Homeserver.ServerName != "file.example" {
		t.Errorf("the environment undid the file: %q", cfg.Homeserver.ServerName)
	}

	_, err = Load("", []string{"TRUNKHALL_SFU_UDP_PORT=many", "TRUNKHALL_HOMESERVER_GUESTS=perhaps", "TRUNKHALL_WEB_DRAIN_TIMEOUT="})
	for _, name := range []string{"TRUNKHALL_SFU_UDP_PORT", "TRUNKHALL_HOMESERVER_GUESTS", "TRUNKHALL_WEB_DRAIN_TIMEOUT"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}

// TestEverySettingFromTheEnvironment gives each setting its own default back
// as text.
func TestEverySettingFromTheEnvironment(t *testing.T) {
	cfg := Default()
	for _, s := range settings(&cfg) {
		var text string
		switch v := s.value.Interface().(type) {
		case []string:
			text = strings.Join(v, ",")
		case time.Duration:
			text = v.String()
		case map[string][]string:
			text = "{}"
		default:
			text = fmt.Sprint(v)
		}
		fresh := reflect.New(s.value.Type()).Elem()
		if err := setFromText(fresh, text); err != nil {
			t.Errorf("%s=%q: %v", EnvName(s.path), text, err)
			continue
		}
		if fresh.Kind() != reflect.Slice && fresh.Kind() != reflect.Map && !reflect.DeepEqual(fresh.Interface(), s.value.Interface()) {
			t.Errorf("%s=%q sets %v", EnvName(s.path), text, fresh)
		}
	}
}

func TestUnknownVariables(t *testing.T) {
	got := UnknownVariables([]string{"TRUNKHALL_WEB_LISTEN=:1", "TRUNKHALL_TURN_SECRET_FILE=/x", "TRUNKHALL_WEB_LISEN=:1", "PATH=/bin"})
	if !slices.Equal(got, []string{"TRUNKHALL_WEB_LISEN"}) {
		t.Errorf("%q", got)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := Load("/nonexistent/trunkhall.yaml", nil); err == nil || !strings.Contains(err.Error(), "/nonexistent/trunkhall.yaml") {
		t.Errorf("%v", err)
	}
}

func TestSnakeCase(t *testing.T) {
	for name, want := range map[string]string{
		"APISecret": "api_secret", "TokenTTL": "token_ttl", "UDPPort": "udp_port",
		"LeaveGrace": "leave_grace", "Port": "port", "APIKey": "api_key",
	} {
		if got := snakeCase(name); got != want {
			t.Errorf("snakeCase(%q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultFile))
	f.Add([]byte("web: {listen: ':1'}\nturn:\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("web: &w\n  listen: x\nsfu: *w"))
	f.Add([]byte("<<: {data_dir: x}"))
	f.Add([]byte("? [1]\n: 2"))
	f.Add([]byte("sfu: {udp_port: 99999999999999999999}"))
	f.Add([]byte("\"web\":\n  !!str listen: 1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// A secret's file would be read from this machine.
		if strings.Contains(string(data), "_file") {
			return
		}
		cfg, err := Parse(data)
		if err != nil {
			return
		}
		if err := cfg.Validate(); err != nil {
			t.Errorf("accepted but not valid: %v", err)
		}
	})
}
