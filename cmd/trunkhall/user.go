package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/trunkhall/trunkhall/node"
)

const userUsage = `usage: trunkhall user add|passwd|list [flags] [NAME]

  add NAME       make an account; the password is read from the first line of
                 standard input, or made up and printed with --generate
  passwd NAME    give an account another password, read or made up alike
  list           list the accounts

The server may run or not. Flags: --config FILE, --data DIR.
`

func user(ctx context.Context, e env) error {
	if len(e.args) == 0 {
		fmt.Fprint(e.stderr, userUsage)
		return errUsage
	}
	verb := e.args[0]
	e.args = e.args[1:]
	switch verb {
	case "add", "passwd", "list":
	case "-h", "-help", "--help":
		fmt.Fprint(e.stdout, userUsage)
		return nil
	default:
		fmt.Fprintf(e.stderr, "trunkhall user: there is no %q\n\n%s", verb, userUsage)
		return errUsage
	}

	fs := e.flags("user "+verb, "user "+verb+" [flags] [NAME]")
	file := fs.String("config", "", "configuration `file`")
	data := fs.String("data", "", "data `directory`, in place of data_dir")
	var admin, generate *bool
	most := 0
	if verb != "list" {
		generate = fs.Bool("generate", false, "make up a password and print it")
		most = 1
	}
	if verb == "add" {
		admin = fs.Bool("admin", false, "let the account administer the server")
	}
	if err := e.parse(fs, most); err != nil {
		return err
	}
	name := fs.Arg(0)
	if most == 1 && name == "" {
		fmt.Fprint(e.stderr, "trunkhall user "+verb+": whose account? give a name\n")
		return errUsage
	}
	cfg, err := e.load(*file)
	if err != nil {
		return err
	}
	if *data != "" {
		cfg.DataDir = *data
	}
	var password string
	if verb != "list" {
		if password, err = e.password(*generate); err != nil {
			return err
		}
	}
	cfg.Log.Level = "warn" // the command's own words are enough
	users, err := node.OpenUsers(ctx, cfg, e.logger(cfg.Log))
	if err != nil {
		return err
	}
	defer users.Close()

	switch verb {
	case "add":
		id, err := users.Add(ctx, name, password, *admin)
		if err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, "made", id)
	case "passwd":
		if err := users.SetPassword(ctx, name, password); err != nil {
			return err
		}
		fmt.Fprintln(e.stdout, "changed; other sessions of the account have ended")
	case "list":
		return e.printUsers(ctx, users)
	}
	if *generate {
		fmt.Fprintln(e.stdout, "password:", password)
	}
	return nil
}

// password reads the password from the first line of standard input or makes
// one up. It is no flag: flags can be read by every user of the machine.
func (e env) password(generate bool) (string, error) {
	if generate {
		return rand.Text(), nil
	}
	fmt.Fprint(e.stderr, "password: ")
	line, err := bufio.NewReader(io.LimitReader(e.stdin, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimRight(line, "\r\n")
	if password == "" {
		return "", errors.New("no password was given on standard input; --generate makes one up")
	}
	return password, nil
}

func (e env) printUsers(ctx context.Context, users node.Users) error {
	list, err := users.List(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "USER\tKIND\tMADE")
	for _, u := range list {
		kind := "user"
		switch {
		case u.Deactivated:
			kind = "deactivated"
		case u.Admin:
			kind = "admin"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", u.ID, kind, u.Created.Local().Format("2006-01-02 15:04"))
	}
	return table.Flush()
}
