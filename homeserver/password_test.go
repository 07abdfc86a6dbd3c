package homeserver

import (
	"strings"
	"testing"
)

func TestPasswordHashes(t *testing.T) {
	p := newPasswordHasher() // with the real cost, once
	one, err := p.hash(t.Context(), "pässword 1")
	if err != nil || !strings.HasPrefix(one, "$argon2id$v=19$m=12288,t=3,p=1$") {
		t.Fatalf("hash: %q, %v", one, err)
	}
	p.time, p.memory = 1, 64
	two, err := p.hash(t.Context(), "pässword 1")
	if err != nil || one == two {
		t.Fatalf("hash: %q, %v", two, err)
	}
	for _, row := range []struct {
		phc, password string
		want          bool
	}{
		{one, "pässword 1", true}, {two, "pässword 1", true}, // what was hashed at another cost still matches
		{one, "pässword 2", false}, {two, "", false}, {"", "", false}, {"", "x", false},
	} {
		if got, err := p.matches(t.Context(), row.phc, row.password); got != row.want || err != nil {
			t.Errorf("%.20q matches %q: %t, %v", row.phc, row.password, got, err)
		}
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=64,t=1,p=1$AAAA$AAAA", "$argon2id$v=19$m=99999999,t=1,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=0,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=1,p=1$AAAA$AA", "$argon2id$$$$", "$argon2id$v=19$m=64,t=1,p=1$!$!"} {
		if ok, err := p.matches(t.Context(), bad, "x"); ok || err == nil {
			t.Errorf("%q: %t, %v", bad, ok, err)
		}
	}
}
