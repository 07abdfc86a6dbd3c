package sip

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/trunkhall/trunkhall/audio"
)

// The announcements. Their texts are in prompts/en.txt.
const (
	promptWelcome     = "welcome-pin"
	promptWrongPIN    = "wrong-pin"
	promptTryAgain    = "try-again"
	promptGoodbye     = "goodbye"
	promptLocked      = "room-locked"
	promptFull        = "room-full"
	promptAlone       = "alone"
	promptMuted       = "muted"
	promptUnmuted     = "unmuted"
	promptModMuted    = "muted-by-moderator"
	promptModUnmuted  = "unmuted-by-moderator"
	promptHandUp      = "hand-raised"
	promptHandDown    = "hand-lowered"
	promptLobby       = "lobby"
	promptNotLetIn    = "not-let-in"
	promptJoined      = "joined"
	promptNotAllowed  = "not-allowed"
	promptUnavailable = "unavailable"
	promptEmergency   = "emergency"
	promptRemoved     = "removed"
	promptEnded       = "ended"
	promptLimit       = "limit"
	promptHelp        = "help"
)

// languages are those that announcements are shipped in.
var languages = []string{"en", "de"}

// promptRate is the sample rate of the files.
const promptRate = 8000

// maxPrompt bounds a file of the operator's: two minutes.
const maxPrompt = 2 * 60 * promptRate

//go:embed prompts/en/*.ulaw prompts/de/*.ulaw
var shipped embed.FS

// announcer holds the announcements as samples. Each is read when it is first
// played.
type announcer struct {
	dir string // of the operator; empty: none

	mu   sync.Mutex
	have map[string][]int16
}

// newAnnouncer checks that dir is a directory, if it is given.
func newAnnouncer(dir string) (*announcer, error) {
	if dir != "" {
		info, err := os.Stat(dir)
		if err != nil {
			return nil, fmt.Errorf("sip.prompts.dir: %w", err)
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("sip.prompts.dir: %s is no directory", dir)
		}
	}
	return &announcer{dir: dir, have: make(map[string][]int16)}, nil
}

// get returns an announcement at promptRate, or nothing if it cannot be read. The
// caller must not change it.
func (a *announcer) get(language, name string) ([]int16, error) {
	key := path.Join(language, name+".ulaw")
	a.mu.Lock()
	defer a.mu.Unlock()
	if pcm, ok := a.have[key]; ok {
		return pcm, nil
	}
	data, err := a.read(key)
	if err != nil {
		return nil, fmt.Errorf("announcement %s: %w", key, err)
	}
	pcm := make([]int16, len(data))
	if _, err := (audio.ULaw{}).Decode(data, pcm); err != nil {
		return nil, fmt.Errorf("announcement %s: %w", key, err)
	}
	a.have[key] = pcm
	return pcm, nil
}

func (a *announcer) read(key string) ([]byte, error) {
	if a.dir != "" {
		name := filepath.Join(a.dir, filepath.FromSlash(key))
		info, err := os.Stat(name)
		switch {
		case err == nil && info.Size() > maxPrompt:
			return nil, fmt.Errorf("%s is longer than two minutes", name)
		case err == nil:
			return os.ReadFile(name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	data, err := shipped.ReadFile("prompts/" + key)
	if errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(key, languages[0]+"/") {
		return shipped.ReadFile("prompts/" + path.Join(languages[0], path.Base(key)))
	}
	return data, err
}
