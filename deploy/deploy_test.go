// Package deploy tests the samples beside it with the programs that they are
// for.
package deploy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/trunkhall/trunkhall/config"
)

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// program finds a program that 'make test' installs; some live in /usr/sbin,
// which is not in everybody's path.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		t.Fatalf("%s is not installed; 'make test' installs it", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(program(t, name), args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "SYSTEMD_LOG_LEVEL=warning")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func TestUnit(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable() // verify wants the program to exist
	if err != nil {
		t.Fatal(err)
	}
	unit := read(t, "trunkhall.service")
	if !strings.Contains(unit, "/usr/local/bin/trunkhall serve") {
		t.Fatal("the unit does not start trunkhall")
	}
	path := write(t, dir, "trunkhall.service", strings.ReplaceAll(unit, "/usr/local/bin/trunkhall serve", self+" serve"))
	run(t, "systemd-analyze", "verify", "--recursive-errors=no", path)
	// 100 is no protection at all; a hardened service is at 20 or below.
	run(t, "systemd-analyze", "security", "--offline=true", "--threshold=20", path)
}

func TestCaddyfile(t *testing.T) {
	run(t, "caddy", "validate", "--adapter", "caddyfile", "--config", "Caddyfile")
}

func TestNginx(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	// nginx -t binds the ports: others than 443, which needs rights.
	site := write(t, dir, "site.conf", replaceAll(t, read(t, "nginx.conf"),
		"/etc/ssl/calls.example.org/fullchain.pem", cert,
		"/etc/ssl/calls.example.org/privkey.pem", key,
		"listen 443 ssl", "listen "+freeAddress(t)+" ssl",
		"listen [::]:443 ssl", "listen unix:"+dir+"/socket ssl",
	))
	whole := write(t, dir, "nginx.conf", nginxAround(dir, site))
	run(t, "nginx", "-t", "-e", "stderr", "-p", dir, "-c", whole)
}

// nginxAround is a whole configuration around a site that needs no rights and
// writes below dir alone.
func nginxAround(dir, site string) string {
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += fmt.Sprintf("\t%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	return fmt.Sprintf("daemon off;\nmaster_process off;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp {\n%s\tinclude %s;\n}\n", dir, temp, site)
}

func selfSigned(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"calls.example.org"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	key = write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
	return cert, key
}

// TestCompose loads what the container would be given.
func TestCompose(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Build struct {
				Context    string `yaml:"context"`
				Dockerfile string `yaml:"dockerfile"`
			} `yaml:"build"`
			Image           string            `yaml:"image"`
			Restart         string            `yaml:"restart"`
			StopGracePeriod string            `yaml:"stop_grace_period"`
			ReadOnly        bool              `yaml:"read_only"`
			Tmpfs           []string          `yaml:"tmpfs"`
			CapDrop         []string          `yaml:"cap_drop"`
			SecurityOpt     []string          `yaml:"security_opt"`
			Environment     map[string]string `yaml:"environment"`
			Ports           []string          `yaml:"ports"`
			Volumes         []string          `yaml:"volumes"`
		} `yaml:"services"`
		Volumes map[string]any `yaml:"volumes"`
	}
	if err := yaml.UnmarshalWithOptions([]byte(read(t, "compose.yaml")), &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	s, ok := file.Services["trunkhall"]
	if !ok {
		t.Fatal("no service trunkhall")
	}
	if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
		t.Error(err)
	}
	var environ []string
	for name, value := range s.Environment {
		environ = append(environ, name+"="+value)
	}
	if unknown := config.UnknownVariables(environ); unknown != nil {
		t.Errorf("these variables set nothing: %v", unknown)
	}
	cfg, err := config.Load("", append(environ, "TRUNKHALL_WEB_LISTEN=:8008"))
	if err != nil {
		t.Fatal(err)
	}
	published := strings.Join(s.Ports, " ") + " "
	for _, want := range []string{
		":8008/tcp ",
		fmt.Sprintf(":%d/tcp ", cfg.SFU.TCPPort),
		fmt.Sprintf(":%d/udp ", cfg.SFU.UDPPort),
		fmt.Sprintf(":%d/tcp ", cfg.TURN.Port),
		fmt.Sprintf(":%d/udp ", cfg.TURN.Port),
		fmt.Sprintf(":%d-%d/udp ", cfg.TURN.RelayPortMin, cfg.TURN.RelayPortMax),
	} {
		if !strings.Contains(published, want) {
			t.Errorf("port %sis not published", want)
		}
	}
}

// TestDockerfile checks what can be checked without Docker: that what it copies
// exists, and that it runs as nobody.
func TestDockerfile(t *testing.T) {
	text := read(t, "Dockerfile")
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-].*) \S+$`).FindAllStringSubmatch(text, -1) {
		for source := range strings.FieldsSeq(m[1]) {
			if _, err := os.Stat(filepath.Join("..", source)); err != nil {
				t.Errorf("COPY: %v", err)
			}
		}
	}
	last := text[strings.LastIndex(text, "\nFROM "):]
	if !strings.Contains(last, "\nUSER 65532") {
		t.Error("the container runs as root")
	}
	var environ []string
	for _, m := range regexp.MustCompile(`(TRUNKHALL_\w+)=(\S+)`).FindAllStringSubmatch(last, -1) {
		environ = append(environ, m[0])
	}
	if unknown := config.UnknownVariables(environ); len(environ) == 0 || unknown != nil {
		t.Errorf("environment %v, of that unknown %v", environ, unknown)
	}
	cfg := config.Default()
	for _, port := range []string{
		fmt.Sprintf("%d/udp", cfg.SFU.UDPPort), fmt.Sprintf("%d/tcp", cfg.SFU.TCPPort),
		fmt.Sprintf("%d/udp", cfg.TURN.Port), fmt.Sprintf("%d/tcp", cfg.TURN.Port),
		fmt.Sprintf("%d-%d/udp", cfg.TURN.RelayPortMin, cfg.TURN.RelayPortMax), "8008/tcp",
	} {
		if !strings.Contains(last, port) {
			t.Errorf("port %s is not exposed", port)
		}
	}
}
