// Command trunkhall is calls for Matrix in one program: a homeserver, the
// signaling service, an SFU, a TURN relay and a web client.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/trunkhall/trunkhall/config"
)

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version string

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // something went wrong; the message says what
	exitUsage = 2 // the command line is not understood
)

const usage = `Trunkhall: calls for Matrix in one program.

usage: trunkhall COMMAND [flags]

  serve     run the server; without a configuration on this machine only, with
            its data in ./trunkhall-data
  demo      run a server to try out, with ready-made users and data that is
            removed at the end
  config    print the documented default configuration
  user      add, list, passwd: accounts of a data directory
  sip       check, explain, pin, bans, calls: telephones
  bench     measure this machine: sfu or homeserver
  version   print the version

'trunkhall COMMAND -h' tells the flags of a command.
`

// errUsage says that the command line is wrong and has been explained.
var errUsage = errors.New("usage")

// An env is what a command sees of the world; tests bring their own.
type env struct {
	args    []string // after the command's name
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
}

func main() {
	// What we write (database, media, secrets) is for our own user alone.
	syscall.Umask(0o077)
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go stopOnSignal(signals, cancel)
	e := env{os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr}
	os.Exit(run(ctx, e))
}

// stopOnSignal calls stop at the first signal. A later one ends the process at
// once, but not one that comes with the first: timeout(1) and others send a signal
// to a process and then to its group.
func stopOnSignal(signals <-chan os.Signal, stop func()) {
	<-signals
	stop()
	first := time.Now()
	for range signals {
		if time.Since(first) > time.Second {
			fmt.Fprintln(os.Stderr, "trunkhall: ended by a second signal")
			os.Exit(exitError)
		}
	}
}

// run runs the command that e names and returns the exit code.
func run(ctx context.Context, e env) int {
	if len(e.args) == 0 {
		fmt.Fprint(e.stderr, usage)
		return exitUsage
	}
	name := e.args[0]
	e.args = e.args[1:]
	var err error
	switch name {
	case "serve":
		err = serve(ctx, e)
	case "demo":
		err = demo(ctx, e)
	case "config":
		err = printConfig(e)
	case "user":
		err = user(ctx, e)
	case "sip":
		err = sipCommand(ctx, e)
	case "bench":
		err = benchmark(ctx, e)
	case "version", "--version", "-version":
		fmt.Fprintln(e.stdout, "trunkhall "+versionText())
	case "help", "--help", "-help", "-h":
		fmt.Fprint(e.stdout, usage)
	default:
		fmt.Fprintf(e.stderr, "trunkhall: there is no command %q\n\n%s", name, usage)
		return exitUsage
	}
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	}
	fmt.Fprintf(e.stderr, "trunkhall %s: %v\n", name, err)
	return exitError
}

// flags returns the flag set of a command; its errors are written to stderr.
func (e env) flags(command, about string) *flag.FlagSet {
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(e.stderr)
	fs.Usage = func() {
		fmt.Fprintf(e.stderr, "usage: trunkhall %s\n\n", about)
		fs.PrintDefaults()
	}
	return fs
}

// parse parses the arguments; there must be no more than most words beside the
// flags.
func (e env) parse(fs *flag.FlagSet, most int) error {
	if err := fs.Parse(e.args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage // the flag set has explained it
	}
	if fs.NArg() > most {
		fmt.Fprintf(e.stderr, "trunkhall %s: %q is one word too many\n", fs.Name(), fs.Arg(most))
		return errUsage
	}
	return nil
}

// load reads the configuration for a command.
func (e env) load(path string) (config.Config, error) {
	cfg, err := config.Load(path, e.environ)
	if err != nil {
		return cfg, fmt.Errorf("the configuration is not usable:\n%w", err)
	}
	return cfg, nil
}

// logger returns the logger that the configuration asks for.
func (e env) logger(cfg config.Log) *slog.Logger {
	level, _ := cfg.SlogLevel() // validated
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: maskPhones}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(e.stderr, options))
	}
	return slog.New(slog.NewTextHandler(e.stderr, options))
}

func printConfig(e env) error {
	fs := e.flags("config", "config\n\nPrints the documented default configuration.")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	_, err := io.WriteString(e.stdout, config.DefaultFile)
	return err
}

// versionText returns the stamped version, or what the Go tool knows.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "built from " + s.Value
		}
	}
	return "development build"
}
