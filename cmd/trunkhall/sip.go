package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/node"
	"github.com/trunkhall/trunkhall/sip"
	"github.com/trunkhall/trunkhall/sip/ledger"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

const sipUsage = `usage: trunkhall sip check|explain|pin|bans|calls [flags] [WORDS]

  check [TRUNK]     try one or all trunks: names, registration, whether each target
                    answers, codecs; with --call NUMBER a short call too. Ends with
                    1 if something does not work
  explain NUMBER    show, rule by rule, what calling a number would do; nothing is
                    called. --user, --room and --trunk make it more exact
  pin ROOM          the numbers and the PIN with which telephones come into a room
                    (#alias:server, !id or a name under sip.rooms); --rotate makes
                    a new PIN
  bans              the addresses that are shut out, and why; 'bans lift ADDRESS'
                    lets one in again
  calls             the calls of now and the last ones that have ended

The server may run or not; pin, bans and the calls of now need it. Flags:
--config FILE, --data DIR, --json.
`

// sipCommand manages telephones.
func sipCommand(ctx context.Context, e env) error {
	if len(e.args) == 0 {
		fmt.Fprint(e.stderr, sipUsage)
		return errUsage
	}
	verb := e.args[0]
	e.args = e.args[1:]
	commands := map[string]struct {
		about string
		flags func(*sipRun, *flag.FlagSet)
		least int // words
		most  int
		run   func(*sipRun, context.Context) error
	}{
		"check":   {"check [flags] [TRUNK]", (*sipRun).checkFlags, 0, 1, (*sipRun).check},
		"explain": {"explain [flags] NUMBER", (*sipRun).explainFlags, 1, 1, (*sipRun).explain},
		"pin":     {"pin [flags] ROOM", (*sipRun).pinFlags, 1, 1, (*sipRun).pin},
		"bans":    {"bans [flags] [lift ADDRESS]", nil, 0, 2, (*sipRun).bans},
		"calls":   {"calls [flags]", (*sipRun).callsFlags, 0, 0, (*sipRun).calls},
	}
	c, ok := commands[verb]
	switch {
	case ok:
	case verb == "-h", verb == "-help", verb == "--help", verb == "help":
		fmt.Fprint(e.stdout, sipUsage)
		return nil
	default:
		fmt.Fprintf(e.stderr, "trunkhall sip: there is no %q\n\n%s", verb, sipUsage)
		return errUsage
	}

	r := &sipRun{env: e}
	fs := e.flags("sip "+verb, "sip "+c.about)
	file := fs.String("config", "", "configuration `file`")
	data := fs.String("data", "", "data `directory`, in place of data_dir")
	fs.BoolVar(&r.json, "json", false, "print JSON")
	if c.flags != nil {
		c.flags(r, fs)
	}
	var err error
	if r.words, err = e.parseMixed(fs); err != nil {
		return err
	}
	switch n := len(r.words); {
	case n < c.least:
		fmt.Fprintf(e.stderr, "usage: trunkhall sip %s\n", c.about)
		return errUsage
	case n > c.most:
		fmt.Fprintf(e.stderr, "trunkhall sip %s: %q is one word too many\n", verb, r.words[c.most])
		return errUsage
	case verb == "bans" && n > 0 && (n != 2 || r.words[0] != "lift"):
		fmt.Fprintf(e.stderr, "usage: trunkhall sip %s\n", c.about)
		return errUsage
	}
	cfg, err := e.load(*file)
	if err != nil {
		return err
	}
	if *data != "" {
		cfg.DataDir = *data
	}
	cfg.Log.Level = "error" // the command's own words are enough
	if r.phones, err = node.OpenPhones(ctx, cfg, e.logger(cfg.Log)); err != nil {
		return err
	}
	err = c.run(r, ctx)
	return errors.Join(err, r.phones.Close())
}

// parseMixed parses flags that may stand before, between and behind words, and
// returns the words.
func (e env) parseMixed(fs *flag.FlagSet) (words []string, err error) {
	rest := e.args
	for {
		if err := fs.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage // the flag set has explained it
		}
		if fs.NArg() == 0 {
			return words, nil
		}
		words = append(words, fs.Arg(0))
		rest = fs.Args()[1:]
	}
}

// A sipRun is one sip command.
type sipRun struct {
	env
	phones node.Phones
	words  []string
	json   bool

	number string // --call
	trunk  string
	user   string
	room   string
	rotate bool
	limit  int
}

func (r *sipRun) print(v any) error {
	enc := json.NewEncoder(r.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (r *sipRun) table(f func(w io.Writer)) error {
	w := tabwriter.NewWriter(r.stdout, 0, 0, 2, ' ', 0)
	f(w)
	return w.Flush()
}

func (r *sipRun) checkFlags(fs *flag.FlagSet) {
	fs.StringVar(&r.number, "call", "", "also call this `number` for a moment")
}

func (r *sipRun) check(ctx context.Context) error {
	var trunks []string
	if len(r.words) > 0 {
		trunks = r.words[:1]
	} else {
		var err error
		if trunks, err = r.phones.Trunks(ctx); err != nil {
			return err
		}
		if len(trunks) == 0 {
			return errors.New("there are no trunks: add one under sip.trunks")
		}
	}
	var all []sip.TrunkCheck
	for _, id := range trunks {
		fmt.Fprintf(r.stderr, "trying %s: this takes up to half a minute where nobody answers\n", id)
		c, err := r.phones.Check(ctx, id)
		if err != nil {
			return err
		}
		all = append(all, c)
		if err := r.printCheck(c); err != nil {
			return err
		}
	}
	if r.number != "" {
		trunk := ""
		if len(trunks) == 1 {
			trunk = trunks[0]
		}
		fmt.Fprintln(r.stderr, "placing a test call")
		c, err := r.phones.TestCall(ctx, trunk, r.number)
		if err != nil {
			return err
		}
		all = append(all, c)
		if err := r.printCheck(c); err != nil {
			return err
		}
	}
	if r.json {
		if err := r.print(all); err != nil {
			return err
		}
	}
	failed := 0
	for _, c := range all {
		for _, s := range c.Steps {
			if s.Result == "fail" {
				failed++
			}
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return errors.New("one thing does not work")
	}
	return fmt.Errorf("%d things do not work", failed)
}

func (r *sipRun) printCheck(c sip.TrunkCheck) error {
	if r.json {
		return nil // all at the end
	}
	title := c.Trunk
	switch {
	case title == "":
		title = "a test call"
	case c.Name != "":
		title += " (" + c.Name + ")"
	}
	fmt.Fprintln(r.stdout, title)
	return r.table(func(w io.Writer) {
		for _, s := range c.Steps {
			took := ""
			if s.MS > 0 {
				took = fmt.Sprintf("%.0f ms", s.MS)
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", s.Result, s.Step, s.Target, took, s.Text)
		}
	})
}

func (r *sipRun) explainFlags(fs *flag.FlagSet) {
	fs.StringVar(&r.user, "user", "", "on behalf of this `user`, @alice:example.org")
	fs.StringVar(&r.room, "room", "", "from this `room`; needs the server")
	fs.StringVar(&r.trunk, "trunk", "", "over this `trunk` only")
}

func (r *sipRun) explain(ctx context.Context) error {
	x, err := r.phones.Explain(ctx, r.words[0], r.trunk, r.user, r.room)
	if err != nil {
		return err
	}
	if r.json {
		return r.print(x)
	}
	return printExplanation(r, x)
}

func printExplanation(r *sipRun, x sip.Explanation) error {
	err := r.table(func(w io.Writer) {
		for i, s := range x.Steps {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", i+1, s.Rule, s.Result, s.Trunk, s.Text)
		}
	})
	if x.Reason != numbers.Allowed {
		fmt.Fprintf(r.stdout, "\nrefused (%s): %s\n", x.Reason, x.Text)
		return err
	}
	var trunks []string
	for _, t := range x.Trunks {
		trunks = append(trunks, t.Trunk)
	}
	fmt.Fprintf(r.stdout, "\n%s would be called over %s\n", numbers.Display(x.Number), strings.Join(trunks, ", then "))
	if !r.phones.Running() {
		fmt.Fprintln(r.stdout, "The server does not run: rights, budgets and trunks made by API were not looked at.")
	}
	return err
}

func (r *sipRun) pinFlags(fs *flag.FlagSet) {
	fs.BoolVar(&r.rotate, "rotate", false, "make a new PIN; the old one ends")
}

func (r *sipRun) pin(ctx context.Context) error {
	p, err := r.phones.PIN(ctx, r.words[0], r.rotate)
	if err != nil {
		return err
	}
	if r.json {
		return r.print(p)
	}
	return r.table(func(w io.Writer) {
		if p.Title != "" {
			fmt.Fprintf(w, "room:\t%s\n", p.Title)
		}
		for _, n := range p.Numbers {
			fmt.Fprintf(w, "number:\t%s\n", numbers.Display(n))
		}
		if len(p.Numbers) == 0 {
			fmt.Fprintf(w, "number:\tnone: no rule under sip.dispatch has the action pin\n")
		}
		fmt.Fprintf(w, "PIN:\t%s\n", p.PIN)
	})
}

func (r *sipRun) bans(ctx context.Context) error {
	if len(r.words) == 2 {
		was, err := r.phones.LiftBan(ctx, r.words[1])
		if err != nil {
			return err
		}
		if !was {
			return fmt.Errorf("%s is not banned", r.words[1])
		}
		fmt.Fprintln(r.stdout, "lifted")
		return nil
	}
	list, err := r.phones.Bans(ctx)
	if err != nil {
		return err
	}
	if r.json {
		return r.print(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(r.stdout, "nobody is banned")
		return nil
	}
	return r.table(func(w io.Writer) {
		fmt.Fprintln(w, "ADDRESS\tSINCE\tUNTIL\tIGNORED\tWHY")
		for _, b := range list {
			why := b.Why
			if b.Agent != "" {
				why += " (" + b.Agent + ")"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", b.IP, clock(b.Since), clock(b.Until), b.Drops, why)
		}
	})
}

func (r *sipRun) callsFlags(fs *flag.FlagSet) {
	fs.IntVar(&r.limit, "limit", 20, "show `so many` calls that have ended")
}

func (r *sipRun) calls(ctx context.Context) error {
	c, err := r.phones.Calls(ctx, r.limit)
	if err != nil {
		return err
	}
	if r.json {
		return r.print(c)
	}
	if len(c.Live)+len(c.Records) == 0 {
		fmt.Fprintln(r.stdout, "no calls yet")
		return nil
	}
	return r.table(func(w io.Writer) {
		fmt.Fprintln(w, "BEGAN\tTRUNK\tFROM\tTO\tTALKED\tQUALITY\tHOW")
		for _, l := range c.Live {
			rec := ledger.FromLeg(l)
			talked := "-"
			if !l.Answered.IsZero() {
				talked = time.Since(l.Answered).Round(time.Second).String()
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", clock(rec.Start), rec.Trunk, shown(rec.From), shown(rec.To), talked, quality(rec), "now: "+string(l.State))
		}
		for _, rec := range c.Records {
			talked := "-"
			if rec.Seconds > 0 {
				talked = (time.Duration(rec.Seconds) * time.Second).String()
			}
			how := string(rec.Cause)
			if rec.Text != "" && rec.Cause != call.CauseHangup {
				how += ": " + rec.Text
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", clock(rec.Start), rec.Trunk, shown(rec.From), shown(rec.To), talked, quality(rec), how)
		}
	})
}

// shown writes a number for people; no number is an anonymous caller's.
func shown(number string) string {
	if number == "" {
		return "-"
	}
	return numbers.Display(number)
}

func quality(r ledger.Record) string {
	if r.MOS == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", r.MOS)
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
