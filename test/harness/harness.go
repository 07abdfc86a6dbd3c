// Package harness starts a real Trunkhall for the end-to-end tests, and the
// programs that drive it: clients that we did not write.
package harness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startTimeout is how long a server may take to say that it is ready. It starts
// in far less; a loaded machine is given time.
const startTimeout = 60 * time.Second

// A User is one of the ready-made accounts of a demo.
type User struct {
	UserID      string `json:"user_id"`
	Password    string `json:"password"`
	AccessToken string `json:"access_token"`
	DeviceID    string `json:"device_id"`
}

// Ready is the line that `trunkhall demo --json` prints when it serves.
type Ready struct {
	Homeserver string          `json:"homeserver"`
	LiveKitURL string          `json:"livekit_url"`
	JWTService string          `json:"jwt_service"`
	APIKey     string          `json:"api_key"`
	APISecret  string          `json:"api_secret"`
	TURN       json.RawMessage `json:"turn"`
	Users      []User          `json:"users"`
}

// A Server is one running `trunkhall demo`.
type Server struct {
	Ready

	t    testing.TB
	data string // the --data directory
	o    Options
	log  *logFile
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has been waited for
	err  error         // of cmd; read after done
}

// Start runs a demo with its data in a directory of the test's own, waits until
// it is ready and stops it when the test ends. Its log is printed when the test
// failed.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartWith(t, Options{})
}

// Options change how a demo is started.
type Options struct {
	Config string   // a configuration file's content, YAML
	Env    []string // NAME=value
}

// StartWith is Start with options.
func StartWith(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, data: t.TempDir(), o: o, log: newLog(t, "server")}
	s.run("127.0.0.1:0")
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stopping the server: %v", err)
		}
	})
	return s
}

// Restart kills the server without warning and starts it again with the same
// data on the same port.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	u, err := url.Parse(s.Homeserver)
	if err != nil {
		s.t.Fatalf("the server's own address: %v", err)
	}
	s.run(u.Host)
}

// Kill ends the server as a crash would.
func (s *Server) Kill() {
	s.t.Helper()
	select {
	case <-s.done:
		s.t.Fatalf("the server had ended by itself: %v", s.err)
	default:
	}
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("killing the server: %v", err)
	}
	<-s.done
}

// Log returns what the server has logged so far.
func (s *Server) Log() string {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.buf.String()
}

// PID returns the server's process ID.
func (s *Server) PID() int { return s.cmd.Process.Pid }

func (s *Server) run(listen string) {
	s.t.Helper()
	args := []string{"demo", "--json", "--listen", listen, "--data", s.data}
	if s.o.Config != "" {
		path := filepath.Join(s.data, "trunkhall.yaml")
		if err := os.WriteFile(path, []byte(s.o.Config), 0o600); err != nil {
			s.t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	cmd := exec.Command(binary(s.t), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = append(append(os.Environ(), "TRUNKHALL_LOG_LEVEL=debug"), s.o.Env...)
	cmd.Stderr = s.log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("starting the server: %v", err)
	}
	s.cmd, s.done = cmd, make(chan struct{})
	ready := make(chan error, 1)
	go func() {
		defer close(s.done)
		in := bufio.NewScanner(stdout)
		in.Buffer(nil, 1<<20)
		if in.Scan() {
			ready <- json.Unmarshal(in.Bytes(), &s.Ready)
		} else {
			ready <- errors.New("it ended without saying that it is ready")
		}
		for in.Scan() {
			fmt.Fprintf(s.log, "(stdout) %s\n", in.Text())
		}
		s.err = cmd.Wait()
	}()
	select {
	case err := <-ready:
		if err != nil {
			s.log.show()
			s.t.Fatalf("the server's first line: %v", err)
		}
	case <-time.After(startTimeout):
		s.log.show()
		s.t.Fatalf("the server was not ready within %s", startTimeout)
	}
}

// stop asks the server to end, as Ctrl-C does, and reports a server that does
// not, or that had crashed.
func (s *Server) stop() error {
	select {
	case <-s.done:
		if s.err != nil && !killed(s.err) {
			return fmt.Errorf("it had ended by itself: %w", s.err)
		}
		return nil
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.done:
		return s.err
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.done
		return errors.New("still running 30 s after SIGTERM")
	}
}

func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

var built struct {
	sync.Once
	path string
	err  error
}

// binary returns the program under test: $TRUNKHALL_BIN, else bin/trunkhall of
// the repository as `make build` leaves it, else one built now.
func binary(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		if path := os.Getenv("TRUNKHALL_BIN"); path != "" {
			built.path, built.err = filepath.Abs(path)
			return
		}
		path := filepath.Join(Root(), "bin", "trunkhall")
		if _, err := os.Stat(path); err == nil {
			built.path = path
			return
		}
		dir, err := os.MkdirTemp("", "trunkhall-bin")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "trunkhall")
		cmd := exec.Command("go", "build", "-o", built.path, "./cmd/trunkhall")
		cmd.Dir = Root()
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("building trunkhall: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// Root returns the repository's root folder.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// A Script is a Node program that drives clients. It gets its configuration as
// its only argument, prints what it found as one line of JSON at the end, and
// ends with a status other than 0 when something did not happen.
type Script struct {
	File    string         // below test/
	Config  map[string]any // "server" is filled in
	Timeout time.Duration
	// Asks answers the script's own requests ({"ask": name} lines), for what
	// only the test can do, such as restarting the server.
	Asks map[string]func() any
	// Told answers those requests that come with a value.
	Told map[string]func(value json.RawMessage) any
}

// Run runs the script against s and returns its result. It fails the test when
// the script fails.
func (s *Server) Run(t testing.TB, script Script) json.RawMessage {
	t.Helper()
	result, err := s.Try(t, script)
	if err != nil {
		t.Fatalf("%s: %v", filepath.Base(script.File), err)
	}
	t.Logf("%s", result)
	return result
}

// Try is Run for scripts that are meant to fail: it returns the error.
func (s *Server) Try(t testing.TB, script Script) (json.RawMessage, error) {
	t.Helper()
	dir := filepath.Join(Root(), "test")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "playwright-core")); err != nil {
		t.Fatal("the npm packages of the tests are missing: run `npm ci` in test/")
	}
	config := map[string]any{"server": s.Ready, "dir": t.TempDir(), "output": outputDir(t)}
	for k, v := range script.Config {
		config[k] = v
	}
	// The script gives up by itself shortly before it would be killed, to say where it was.
	config["seconds"] = int(script.Timeout.Seconds())
	arg, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), script.Timeout+15*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--import", filepath.Join(dir, "polyfill.mjs"), filepath.Join(dir, script.File), string(arg))
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// SIGTERM first: playwright then ends its browsers.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	log := newLog(t, strings.TrimSuffix(filepath.Base(script.File), ".mjs"))
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting node: %v", err)
	}
	var result json.RawMessage
	var reason string
	in := bufio.NewScanner(stdout)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		var line struct {
			Ask    string          `json:"ask"`
			Value  json.RawMessage `json:"value"`
			Result json.RawMessage `json:"result"`
			Error  string          `json:"error"`
		}
		if err := json.Unmarshal(in.Bytes(), &line); err != nil {
			fmt.Fprintf(log, "(stdout) %s\n", in.Text())
			continue
		}
		switch {
		case line.Ask != "":
			answer := any(nil)
			if f := script.Asks[line.Ask]; f != nil {
				answer = f()
			} else if f := script.Told[line.Ask]; f != nil {
				answer = f(line.Value)
			}
			b, err := json.Marshal(map[string]any{"answer": answer})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stdin.Write(append(b, '\n')); err != nil {
				fmt.Fprintf(log, "answering %q: %v\n", line.Ask, err)
			}
		case line.Error != "":
			reason = line.Error
		default:
			result = append(json.RawMessage(nil), line.Result...)
		}
	}
	if err := cmd.Wait(); err != nil {
		if reason == "" {
			reason = err.Error()
		}
		return nil, errors.New(reason)
	}
	if result == nil {
		return nil, errors.New("it ended well but printed no result")
	}
	return result, nil
}

// outputDir is where logs and screenshots of a failed test stay.
func outputDir(t testing.TB) string {
	return filepath.Join(Root(), "test", "output", strings.NewReplacer("/", "-", " ", "_").Replace(t.Name()))
}

// A logFile collects what a program writes; when the test failed its end is
// printed and the whole kept.
type logFile struct {
	t    testing.TB
	name string

	mu  sync.Mutex
	buf bytes.Buffer
}

func newLog(t testing.TB, name string) *logFile {
	l := &logFile{t: t, name: name}
	t.Cleanup(func() {
		if t.Failed() {
			l.show()
		}
	})
	return l
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logFile) show() {
	l.mu.Lock()
	all := append([]byte(nil), l.buf.Bytes()...)
	l.mu.Unlock()
	path := filepath.Join(outputDir(l.t), l.name+".log")
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, all, 0o644)
	}
	if err != nil {
		l.t.Logf("keeping the log: %v", err)
	}
	lines := strings.Split(strings.TrimRight(string(all), "\n"), "\n")
	if len(lines) > 60 {
		lines = append([]string{fmt.Sprintf("... all %d lines are in %s", len(lines), path)}, lines[len(lines)-60:]...)
	}
	l.t.Logf("--- log of the %s\n%s", l.name, strings.Join(lines, "\n"))
}
