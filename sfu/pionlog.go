package sfu

import (
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// A pionLogger lets pion write to slog. What pion calls an error is mostly a
// peer's mistake, so nothing is louder than a debug line except its warnings
// of lost sockets.
type pionLogger struct {
	log   *slog.Logger
	scope string
}

var (
	_ logging.LeveledLogger = pionLogger{}
	_ logging.LoggerFactory = pionLogger{}
)

// NewLogger returns the logger of one part of pion.
func (l pionLogger) NewLogger(scope string) logging.LeveledLogger {
	return pionLogger{l.log, scope}
}

func (l pionLogger) line(msg string) { l.log.Debug("webrtc: "+msg, "scope", l.scope) }

// Pion's trace and debug lines may hold SDP and credentials: never written.

func (l pionLogger) Trace(string)          {}
func (l pionLogger) Tracef(string, ...any) {}
func (l pionLogger) Debug(string)          {}
func (l pionLogger) Debugf(string, ...any) {}
func (l pionLogger) Info(string)           {}
func (l pionLogger) Infof(string, ...any)  {}

func (l pionLogger) Warn(msg string)             { l.line(msg) }
func (l pionLogger) Warnf(f string, args ...any) { l.line(fmt.Sprintf(f, args...)) }

func (l pionLogger) Error(msg string)             { l.line(msg) }
func (l pionLogger) Errorf(f string, args ...any) { l.line(fmt.Sprintf(f, args...)) }
