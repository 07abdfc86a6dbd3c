package homeserver

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/trunkhall/trunkhall/matrix"
)

// Cost of a password hash: one of the equivalent settings that OWASP recommends
// for argon2id, chosen for machines with little memory.
const (
	argonMemoryKiB = 12 * 1024
	argonTime      = 3
	argonThreads   = 1
	argonKeyLen    = 32
	argonAtOnce    = 2 // hashes computed at the same time; more wait
)

const (
	minPassword = 8   // characters
	maxPassword = 512 // bytes
)

// A passwordHasher computes password hashes, few at a time so that a crowd at
// the login cannot take all the memory. Safe for concurrent use.
type passwordHasher struct {
	slots        chan struct{}
	time, memory uint32 // of new hashes
}

func newPasswordHasher() passwordHasher {
	return passwordHasher{slots: make(chan struct{}, argonAtOnce), time: argonTime, memory: argonMemoryKiB}
}

func (p passwordHasher) key(ctx context.Context, password string, salt []byte, time, memory uint32, threads uint8, length uint32) ([]byte, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.slots }()
	return argon2.IDKey([]byte(password), salt, time, memory, threads, length), nil
}

// hash returns the PHC string of a password.
func (p passwordHasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails, see crypto/rand
	key, err := p.key(ctx, password, salt, p.time, p.memory, argonThreads, argonKeyLen)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		p.memory, p.time, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// matches reports whether password is the one behind a PHC string. An empty
// string matches nothing but takes as long, so that strangers cannot tell users
// without a password from users with one.
func (p passwordHasher) matches(ctx context.Context, phc, password string) (bool, error) {
	if phc == "" {
		_, err := p.key(ctx, password, make([]byte, 16), p.time, p.memory, argonThreads, argonKeyLen)
		return false, err
	}
	var version, memory, time uint32
	var threads uint8
	parts := strings.Split(phc, "$") // "", argon2id, v=, m=,t=,p=, salt, key
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, errors.New("password hash is of an unknown kind")
	}
	_, err1 := fmt.Sscanf(parts[2], "v=%d", &version)
	_, err2 := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads)
	salt, err3 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err4 := base64.RawStdEncoding.DecodeString(parts[5])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return false, fmt.Errorf("password hash: %w", err)
	}
	if version != argon2.Version || memory > 1<<20 || time == 0 || time > 100 || threads == 0 || len(want) < 16 || len(want) > 256 {
		return false, errors.New("password hash has parameters out of range")
	}
	key, err := p.key(ctx, password, salt, time, memory, threads, uint32(len(want))) //nolint:gosec // checked above
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(key, want) == 1, nil
}

// checkPassword refuses passwords that are too weak or too long.
func checkPassword(password string) error {
	if utf8.RuneCountInString(password) < minPassword {
		return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeWeakPassword, Message: fmt.Sprintf("a password needs at least %d characters", minPassword)}
	}
	if len(password) > maxPassword {
		return invalidParam("a password has at most %d bytes", maxPassword)
	}
	return nil
}
