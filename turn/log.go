package turn

import (
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// pionLogger lets pion/turn write to slog. What it calls an error is mostly a
// client's mistake, and anybody can make many: nothing is louder than debug.
// Its own debug lines are one per packet and never written.
type pionLogger struct{ log *slog.Logger }

var (
	_ logging.LeveledLogger = pionLogger{}
	_ logging.LoggerFactory = pionLogger{}
)

// NewLogger returns the logger of one part of pion.
func (l pionLogger) NewLogger(string) logging.LeveledLogger { return l }

func (l pionLogger) Trace(string)          {}
func (l pionLogger) Tracef(string, ...any) {}
func (l pionLogger) Debug(string)          {}
func (l pionLogger) Debugf(string, ...any) {}
func (l pionLogger) Info(string)           {}
func (l pionLogger) Infof(string, ...any)  {}

func (l pionLogger) Warn(msg string)             { l.log.Debug(msg) }
func (l pionLogger) Warnf(f string, args ...any) { l.log.Debug(fmt.Sprintf(f, args...)) }

func (l pionLogger) Error(msg string)             { l.log.Debug(msg) }
func (l pionLogger) Errorf(f string, args ...any) { l.log.Debug(fmt.Sprintf(f, args...)) }
