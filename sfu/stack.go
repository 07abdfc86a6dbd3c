package sfu

import "runtime/debug"

// stack is the calling goroutine's stack, for the log line of a panic.
func stack() string { return string(debug.Stack()) }
