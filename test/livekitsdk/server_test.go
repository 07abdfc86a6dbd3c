// Package livekitsdk drives the SFU with LiveKit's Go SDK. It is a module of
// its own because that SDK needs an older livekit/protocol than the server.
package livekitsdk

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A server is one running `trunkhall demo`.
type server struct {
	LiveKitURL string `json:"livekit_url"`
	APIKey     string `json:"api_key"`
	APISecret  string `json:"api_secret"`
}

// start runs a demo until the test ends, with more arguments perhaps. The program is $TRUNKHALL_BIN, else
// bin/trunkhall of the repository as `make build` leaves it.
func start(t *testing.T, more ...string) *server {
	t.Helper()
	bin := os.Getenv("TRUNKHALL_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin", "trunkhall")
	}
	if _, err := os.Stat(bin); err != nil {
		root := filepath.Join("..", "..")
		bin = filepath.Join(t.TempDir(), "trunkhall")
		build := exec.Command("go", "build", "-o", bin, "./cmd/trunkhall")
		build.Dir = root
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building trunkhall: %v\n%s", err, out)
		}
	}
	cmd := exec.Command(bin, append([]string{"demo", "--json", "--listen", "127.0.0.1:0", "--data", t.TempDir()}, more...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var log logBuffer
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(30*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server ended with: %v", err)
		}
		if t.Failed() {
			t.Logf("--- log of the server\n%s", log.tail(6000))
		}
	})
	ready := make(chan []byte, 1)
	go func() {
		in := bufio.NewScanner(stdout)
		if in.Scan() {
			ready <- bytes.Clone(in.Bytes())
		} else {
			ready <- nil
		}
	}()
	select {
	case line := <-ready:
		s := &server{}
		if err := json.Unmarshal(line, s); err != nil {
			t.Fatalf("the server's first line is %q: %v", line, err)
		}
		return s
	case <-time.After(time.Minute):
		t.Fatal("the server was not ready within a minute")
		return nil
	}
}

// logBuffer collects what the server writes, from another goroutine.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) tail(n int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b.Bytes()
	return bytes.Clone(b[max(0, len(b)-n):])
}
