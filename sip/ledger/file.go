package ledger

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// The files of a ledger's directory. Earlier record files have the time of their
// last record in their name: calls-20261123T101500.000000000Z.jsonl.
const (
	recordsFile = "calls.jsonl"
	journalFile = "open.jsonl"
)

// syncEvery is how long a record may stay in the kernel's memory alone. The
// journal is not synced: it is for a death of the program, not of the machine.
const syncEvery = time.Second

// longJournal is the size at which the journal is written anew, shorter.
const longJournal = 1 << 20

// maxLine bounds what is read back; no record of ours comes near.
const maxLine = 1 << 16

// A Ledger writes records. It may be used by many at once. Close ends it.
type Ledger struct {
	cfg  Config
	log  *slog.Logger
	wait sync.WaitGroup // for the one that syncs
	stop chan struct{}

	mu      sync.Mutex // guards the following fields
	records *os.File
	size    int64
	torn    bool // the last line was not written to its end
	dirty   bool // not synced
	journal *os.File
	jsize   int64
	long    int64 // longJournal, but for tests
	open    map[string]Record
	recent  []Record                            // the latest last
	days    map[string]map[string]time.Duration // UTC hour, user: outbound time by when it was answered
	closed  bool
}

// An entry is one line of the journal.
type entry struct {
	Do     string    `json:"do"` // open, alive, end
	Record *Record   `json:"record,omitempty"`
	ID     string    `json:"id,omitempty"`
	At     time.Time `json:"at,omitzero"`
}

// Open reads what is there, completes the records of calls that a crash cut off,
// and is ready to write. A directory belongs to one ledger at a time.
func Open(cfg Config, now time.Time, log *slog.Logger) (*Ledger, error) {
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = 16 << 20
	}
	if cfg.Keep <= 0 {
		cfg.Keep = 20
	}
	if cfg.Recent <= 0 {
		cfg.Recent = 1000
	}
	l := &Ledger{
		cfg: cfg, log: log, stop: make(chan struct{}), long: longJournal,
		open: make(map[string]Record), days: make(map[string]map[string]time.Duration),
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("call records: %w", err)
	}
	if err := l.load(now); err != nil {
		return nil, fmt.Errorf("call records: %w", err)
	}
	if err := l.recover(now); err != nil {
		return nil, errors.Join(fmt.Errorf("call records: %w", err), l.records.Close())
	}
	l.wait.Go(l.syncNowAndThen)
	return l, nil
}

// load reads the present file and as many earlier ones as today's sums and the
// recent records need, then opens the present one for more.
func (l *Ledger) load(now time.Time) error {
	old, err := l.earlier()
	if err != nil {
		return err
	}
	slices.Reverse(old)
	files := append([]string{filepath.Join(l.cfg.Dir, recordsFile)}, old...)
	since := now.Add(-50 * time.Hour) // today began less than 25 hours ago, in any time zone; a call may last a day
	var batches [][]Record
	n := 0
	for _, name := range files {
		batch, err := l.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		batches = append(batches, batch)
		n += len(batch)
		if n >= l.cfg.Recent && len(batch) > 0 && batch[0].End.Before(since) {
			break
		}
	}
	for _, batch := range slices.Backward(batches) {
		for _, r := range batch {
			l.remember(r)
		}
	}
	return l.openRecords()
}

func (l *Ledger) openRecords() error {
	f, err := os.OpenFile(filepath.Join(l.cfg.Dir, recordsFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.records, l.size = f, info.Size()
	if l.size > 0 { // a line that was cut off must not swallow the next
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, l.size-1); err == nil && last[0] != '\n' {
			n, err := f.Write([]byte{'\n'})
			l.size += int64(n)
			if err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	return nil
}

// earlier returns the earlier files, the oldest first.
func (l *Ledger) earlier() ([]string, error) {
	list, err := filepath.Glob(filepath.Join(l.cfg.Dir, "calls-*.jsonl"))
	slices.Sort(list)
	return list, err
}

// read reads a file of records. Lines that are none are counted and left out: one
// bad line must not keep the telephones from working.
func (l *Ledger) read(name string) ([]Record, error) {
	var list []Record
	bad, err := eachLine(name, func(line []byte) bool {
		var r Record
		if json.Unmarshal(line, &r) != nil || r.ID == "" {
			return false
		}
		list = append(list, r)
		return true
	})
	if bad > 0 {
		l.log.Warn("call records that cannot be read were left out", "file", name, "lines", bad)
	}
	return list, err
}

// eachLine calls f with each line that is not empty, and returns how many were
// not understood.
func eachLine(name string, f func([]byte) bool) (bad int, err error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	r := bufio.NewReaderSize(file, maxLine)
	for {
		line, more, err := r.ReadLine()
		if err != nil {
			return bad, nil // the end, or a disk that will complain again on writing
		}
		if more { // longer than any line of ours
			for more && err == nil {
				_, more, err = r.ReadLine()
			}
			bad++
			continue
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && !f(line) {
			bad++
		}
	}
}

// remember keeps a record for the API and adds it to the sums.
func (l *Ledger) remember(r Record) {
	if len(l.recent) >= l.cfg.Recent {
		n := copy(l.recent, l.recent[len(l.recent)-l.cfg.Recent+1:])
		l.recent = l.recent[:n]
	}
	l.recent = append(l.recent, r)
	if r.Direction != call.Outbound || r.Answer.IsZero() || !r.End.After(r.Answer) {
		return
	}
	// By the quarter of an hour: all time zones begin their days at one.
	for from := r.Answer; from.Before(r.End); {
		quarter := from.UTC().Truncate(15 * time.Minute)
		to := quarter.Add(15 * time.Minute)
		if to.After(r.End) {
			to = r.End
		}
		key := quarter.Format(quarterKey)
		if l.days[key] == nil {
			l.days[key] = make(map[string]time.Duration)
		}
		l.days[key][r.MXID] += to.Sub(from)
		if from = to; r.End.Sub(r.Answer) > 48*time.Hour {
			break // no call lasts so long; do not spin over a broken clock
		}
	}
}

const quarterKey = "2006-01-02T15:04"

// recover reads the journal, completes what was open, and begins a new one.
func (l *Ledger) recover(now time.Time) error {
	name := filepath.Join(l.cfg.Dir, journalFile)
	open := make(map[string]Record)
	var alive time.Time
	_, err := eachLine(name, func(line []byte) bool {
		var e entry
		if json.Unmarshal(line, &e) != nil {
			return false // the last line may be cut off
		}
		if e.At.After(alive) {
			alive = e.At
		}
		switch {
		case e.Do == "open" && e.Record != nil && e.Record.ID != "":
			open[e.Record.ID] = *e.Record
		case e.Do == "end":
			delete(open, e.ID)
		}
		return true
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if alive.After(now) || alive.IsZero() {
		alive = now
	}
	for _, r := range l.recent { // written, but the journal did not hear of it
		delete(open, r.ID)
	}
	list := slices.SortedFunc(maps.Values(open), func(a, b Record) int {
		return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.ID, b.ID))
	})
	for _, r := range list {
		r.Crashed = true
		r.Cause, r.Text = call.CauseFailed, "the server stopped during the call"
		r.End = alive
		for _, t := range []time.Time{r.Start, r.Answer} {
			if r.End.Before(t) {
				r.End = t
			}
		}
		if !r.Answer.IsZero() {
			r.Seconds = r.End.Sub(r.Answer).Seconds()
		}
		if err := l.write(r); err != nil {
			return err
		}
	}
	if len(list) > 0 {
		l.log.Warn("completed the records of calls that the last stop cut off", "calls", len(list))
		if err := l.records.Sync(); err != nil {
			return err
		}
	}
	return l.rewriteJournal(now)
}

// rewriteJournal replaces the journal by one with only the open legs. l.mu is
// held, or nobody else knows l yet.
func (l *Ledger) rewriteJournal(now time.Time) error {
	name := filepath.Join(l.cfg.Dir, journalFile)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, r := range l.open {
		if err = enc.Encode(entry{Do: "open", Record: &r, At: now}); err != nil {
			break
		}
	}
	if err = cmp.Or(err, w.Flush()); err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if l.journal != nil {
		_ = l.journal.Close()
	}
	l.journal, l.jsize = f, 0
	if info, err := f.Stat(); err == nil {
		l.jsize = info.Size()
	}
	return nil
}

func (l *Ledger) note(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	n, err := l.journal.Write(append(line, '\n'))
	l.jsize += int64(n)
	if err == nil && l.jsize > l.long && l.jsize > int64(4096*len(l.open)) {
		err = l.rewriteJournal(e.At)
	}
	return err
}

// errClosed is use after Close.
var errClosed = errors.New("the call records are closed")

// Begin notes a leg that is under way, and again whenever something of it
// changed that a bill would show: ringing, answered, in a room.
func (l *Ledger) Begin(leg call.Leg, now time.Time) error {
	r := FromLeg(leg)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	l.open[r.ID] = r
	return l.note(entry{Do: "open", Record: &r, At: now})
}

// Alive notes that the calls in the journal still go on. Called every so often
// (half a minute), it is how exact the record of a call is that a crash cut off.
func (l *Ledger) Alive(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.open) == 0 {
		return nil
	}
	return l.note(entry{Do: "alive", At: now})
}

// Finish writes the record of a leg that has ended.
func (l *Ledger) Finish(leg call.Leg) error {
	r := FromLeg(leg)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	if err := l.write(r); err != nil {
		return fmt.Errorf("write the record of call %s: %w", r.ID, err)
	}
	if _, was := l.open[r.ID]; !was {
		return nil
	}
	delete(l.open, r.ID)
	return l.note(entry{Do: "end", ID: r.ID, At: r.End})
}

// write appends a record and begins a new file if this one is full. l.mu is held.
func (l *Ledger) write(r Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if l.size > 0 && l.size+int64(len(line)) > l.cfg.MaxSize {
		if err := l.rotate(r.End); err != nil {
			l.log.Error("begin a new file of call records", "err", err) // go on in the old one
		}
	}
	l.remember(r)
	l.forget(r.End)
	if l.torn { // the disk was full: what comes now must not be lost with it
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.records.Write(line)
	l.torn = n != len(line) && (n > 0 || l.torn)
	l.size += int64(n)
	l.dirty = true
	return err
}

func (l *Ledger) rotate(now time.Time) error {
	present := filepath.Join(l.cfg.Dir, recordsFile)
	if err := l.records.Sync(); err != nil {
		return err
	}
	for at := now.UTC(); ; at = at.Add(1) {
		name := filepath.Join(l.cfg.Dir, "calls-"+at.Format("20060102T150405.000000000Z")+".jsonl")
		if _, err := os.Lstat(name); err == nil {
			continue
		}
		if err := os.Rename(present, name); err != nil {
			return err
		}
		break
	}
	old := l.records
	if err := l.openRecords(); err != nil {
		return err
	}
	_ = old.Close()
	list, err := l.earlier()
	for len(list) > l.cfg.Keep && err == nil {
		err = os.Remove(list[0])
		list = list[1:]
	}
	return err
}

// forget drops sums older than any today, and the budget they were for.
func (l *Ledger) forget(now time.Time) {
	if len(l.days) < 400 {
		return
	}
	old := now.Add(-50 * time.Hour).UTC().Format(quarterKey)
	maps.DeleteFunc(l.days, func(key string, _ map[string]time.Duration) bool { return key < old })
}

func (l *Ledger) syncNowAndThen() {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		f, dirty := l.records, l.dirty
		l.dirty = false
		l.mu.Unlock()
		if dirty {
			if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
				l.log.Error("bring call records to the disk", "err", err)
			}
		}
	}
}

// Records returns the records of recent calls that match, the latest first.
func (l *Ledger) Records(f Filter) []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.pick(l.recent)
}

// Open returns how many legs the journal has as open.
func (l *Ledger) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// Spent returns how much outbound time each user has used on the day of now, in
// now's time zone, by calls that have ended: for the budgets after a restart.
func (l *Ledger) Spent(now time.Time) map[string]time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	y, m, d := now.Date()
	from := time.Date(y, m, d, 0, 0, 0, 0, now.Location()).UTC().Format(quarterKey)
	to := time.Date(y, m, d+1, 0, 0, 0, 0, now.Location()).UTC().Format(quarterKey)
	sums := make(map[string]time.Duration)
	for key, users := range l.days {
		if key >= from && key < to {
			for user, spent := range users {
				sums[user] += spent
			}
		}
	}
	return sums
}

// Close brings everything to the disk. Legs not finished stay in the journal. It
// may be called more than once.
func (l *Ledger) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	l.wait.Wait()
	return errors.Join(l.records.Sync(), l.records.Close(), l.journal.Close())
}
