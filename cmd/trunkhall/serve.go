package main

import (
	"context"
	"log/slog"

	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/node"
)

func serve(ctx context.Context, e env) error {
	fs := e.flags("serve", "serve [--config FILE] [--data DIR] [--listen ADDR]\n\n"+
		"Runs the server until it is interrupted. Without --config it serves this machine only.")
	file := fs.String("config", "", "configuration `file`; see 'trunkhall config'")
	data := fs.String("data", "", "data `directory`, in place of data_dir")
	listen := fs.String("listen", "", "`host:port` of the HTTP port, in place of web.listen")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	cfg, err := e.load(*file)
	if err != nil {
		return err
	}
	if *data != "" {
		cfg.DataDir = *data
	}
	if *listen != "" {
		cfg.Web.Listen = *listen
	}
	log := e.logger(cfg.Log)
	warnUnknown(log, e.environ)
	n, err := node.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	log.Info("serving", "url", n.BaseURL(), "listen", n.Addr().String(), "data", cfg.DataDir, "version", versionText())
	if users, err := n.Homeserver().ListUsers(ctx); err == nil && len(users) == 0 && cfg.Homeserver.Registration == homeserver.RegistrationClosed {
		log.Info("there are no accounts yet; make one with: trunkhall user add --data " + cfg.DataDir + " NAME")
	}
	return n.Run(ctx)
}

// warnUnknown tells of TRUNKHALL_ variables that set nothing.
func warnUnknown(log *slog.Logger, environ []string) {
	for _, name := range config.UnknownVariables(environ) {
		log.Warn("this environment variable sets nothing", "name", name)
	}
}
