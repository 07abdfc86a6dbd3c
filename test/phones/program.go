package phones

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// A program is one running foreign program. It ends with its test at the latest.
type program struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has been waited for
	err  error         // of cmd; read after done

	mu  sync.Mutex
	out bytes.Buffer
}

// Tool returns the path of a program that the tests need, and fails the test
// if it is not installed.
func Tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return path
		}
	}
	t.Fatalf("%s is not installed: run `make test-tools`", name)
	return ""
}

// start runs a program in a process group of its own. What it prints is shown
// when the test fails.
func start(t testing.TB, name, dir, tool string, args ...string) *program {
	t.Helper()
	p := &program{t: t, name: name, done: make(chan struct{})}
	p.cmd = exec.Command(Tool(t, tool), args...)
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Env = append(os.Environ(), "HOME="+dir, "LC_ALL=C.UTF-8")
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			p.show()
		}
	})
	return p
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// printed is all that the program has printed so far.
func (p *program) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *program) show() {
	lines := strings.Split(strings.TrimRight(p.printed(), "\n"), "\n")
	if n := 60; len(lines) > n {
		lines = append([]string{fmt.Sprintf("(%d lines before)", len(lines)-n)}, lines[len(lines)-n:]...)
	}
	p.t.Logf("--- output of %s\n%s", p.name, strings.Join(lines, "\n"))
}

// stop ends the program and waits for it.
func (p *program) stop() {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.done:
			return
		default:
		}
		_ = syscall.Kill(-p.cmd.Process.Pid, signal)
		select {
		case <-p.done:
			return
		case <-time.After(5 * time.Second):
		}
	}
	<-p.done
}

// wait waits until the program has ended by itself.
func (p *program) wait(timeout time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		p.stop()
		return fmt.Errorf("%s was not done after %s", p.name, timeout)
	}
}

// eventually calls check until it returns nil, and fails the test with the last
// error if it does not within the time.
func eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s: %v", what, timeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// ports gives every program of this test process a port of its own: foreign
// programs cannot be asked what port they took. They lie below the range from
// which the kernel hands out ports.
var ports atomic.Int32

func init() {
	// Another process of these tests, on the same machine, begins elsewhere.
	ports.Store(int32(os.Getpid() % 180 * 100))
}

// FreePort returns a port that nobody uses, of UDP and TCP, at ip.
func FreePort(t testing.TB, ip string) int {
	t.Helper()
	return FreePorts(t, ip, 2)
}

// FreePorts returns the first of n ports in a row that nobody uses; it is even.
func FreePorts(t testing.TB, ip string, n int) int {
	t.Helper()
	n += n % 2
search:
	for range 1000 {
		first := 11000 + (int(ports.Add(int32(n)))-n)%18000
		for port := first; port < first+n; port++ {
			if !free(netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port))) {
				continue search
			}
		}
		return first
	}
	t.Fatal("no ports are free")
	return 0
}

func free(addr netip.AddrPort) bool {
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return false
	}
	defer udp.Close()
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return false
	}
	return tcp.Close() == nil
}

// file writes a file of a test's own folder.
func file(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// folder is the folder of this package, where the scenarios are.
func folder() string { return filepath.Join(harness.Root(), "test", "phones") }

var errNotYet = errors.New("not yet")

// logged reports what a program has not printed.
func logged(p interface{ printed() string }, wanted ...string) error {
	all := p.printed()
	for _, w := range wanted {
		if !strings.Contains(all, w) {
			return fmt.Errorf("%q is not in its log", w)
		}
	}
	return nil
}
