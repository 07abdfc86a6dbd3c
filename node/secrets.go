package node

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/trunkhall/trunkhall/config"
)

// Secrets are the keys that a node signs with. What the configuration does not
// give is generated at the first start and kept in the data directory.
type Secrets struct {
	APIKey     string `json:"api_key"`
	APISecret  string `json:"api_secret"`
	TURNSecret string `json:"turn_secret"`
	// PhoneSecret keys the PINs of rooms and the registrations of trunks.
	PhoneSecret string `json:"phone_secret"`
}

// loadSecrets reads secrets.json in dir, or writes it with fresh secrets.
func loadSecrets(dir string) (Secrets, error) {
	name := filepath.Join(dir, "secrets.json")
	var s Secrets
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return Secrets{}, fmt.Errorf("read the secrets: %w", err)
	default:
		if err := json.Unmarshal(data, &s); err != nil {
			return Secrets{}, fmt.Errorf("%s: %w; move it away to have new secrets made", name, err)
		}
		if err := onlyOwner(name); err != nil {
			return Secrets{}, err
		}
	}
	if s.complete() {
		return s, nil
	}
	s.generate()
	data, err = json.MarshalIndent(s, "", "  ")
	if err != nil {
		return Secrets{}, err
	}
	if err := writeFile(name, append(data, '\n')); err != nil {
		return Secrets{}, fmt.Errorf("keep the secrets: %w", err)
	}
	return s, nil
}

func (s *Secrets) complete() bool {
	return s.APIKey != "" && s.APISecret != "" && s.TURNSecret != "" && s.PhoneSecret != ""
}

// generate fills in what is missing. rand.Text has at least 128 bits.
func (s *Secrets) generate() {
	if s.APIKey == "" {
		s.APIKey = "API" + rand.Text()[:12] // a name, not a secret
	}
	if s.APISecret == "" {
		s.APISecret = rand.Text() + rand.Text()
	}
	if s.TURNSecret == "" {
		s.TURNSecret = rand.Text() + rand.Text()
	}
	if s.PhoneSecret == "" {
		s.PhoneSecret = rand.Text() + rand.Text()
	}
}

// override puts what the configuration gives in the place of what was kept.
func (s *Secrets) override(cfg config.Config) {
	if cfg.Signaling.APIKey != "" {
		s.APIKey = cfg.Signaling.APIKey
	}
	if cfg.Signaling.APISecret != "" {
		s.APISecret = cfg.Signaling.APISecret
	}
	if cfg.TURN.Secret != "" {
		s.TURNSecret = cfg.TURN.Secret
	}
}

// onlyOwner refuses a file of secrets that others on the machine can read.
func onlyOwner(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be read by others (mode %o); run 'chmod 600 %s'", name, info.Mode().Perm(), name)
	}
	return nil
}

// writeFile writes a file whole or not at all, readable by its owner alone.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
