package homeserver

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

const registerPath = "/_synapse/admin/v1/register"

func TestSharedSecretRegistration(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) {
		c.Registration, c.RegistrationSharedSecret = RegistrationClosed, "complement"
	})
	body := func(secret, name, admin string, more map[string]any) map[string]any {
		nonce := w.must("GET", registerPath, "", nil).str("nonce")
		mac := hmac.New(sha1.New, []byte(secret))
		mac.Write([]byte(strings.Join([]string{nonce, name, testPassword, admin}, "\x00")))
		b := map[string]any{
			"nonce": nonce, "username": name, "password": testPassword, "admin": admin == "admin", "mac": hex.EncodeToString(mac.Sum(nil)),
		}
		maps.Copy(b, more)
		return b
	}
	first := body("complement", "root", "admin", nil)
	root := w.must("POST", registerPath, "", first)
	if root.str("user_id") != "@root:test.example" || root.str("home_server") != "test.example" || root.str("device_id") == "" {
		t.Errorf("%s", root.raw)
	}
	w.must("GET", c("/account/whoami"), root.str("access_token"), nil)
	for id, admin := range map[matrix.UserID]bool{"@root:test.example": true, "@upper:test.example": false} {
		if !admin {
			w.must("POST", registerPath, "", body("complement", "UPPER", "notadmin", nil))
		}
		if u, err := w.db.User(t.Context(), id); err != nil || u.Admin != admin {
			t.Errorf("%s: admin %v, %v", id, u.Admin, err)
		}
	}
	w.refuse("POST", registerPath, "", first, 400, matrix.CodeUnknown) // the nonce was used
	w.refuse("POST", registerPath, "", body("wrong", "eve", "notadmin", nil), 403, matrix.CodeForbidden)
	w.refuse("POST", registerPath, "", body("complement", "eve", "notadmin", map[string]any{"admin": true}), 403, matrix.CodeForbidden)
	w.refuse("POST", registerPath, "", body("complement", "eve", "notadmin", map[string]any{"password": "notadmin\x00x"}), 400, matrix.CodeInvalidParam)
	w.refuse("POST", registerPath, "", body("complement", "e,v,e", "notadmin", nil), 400, matrix.CodeInvalidUsername)
	w.refuse("POST", registerPath, "", body("complement", "root", "admin", nil), 400, matrix.CodeUserInUse)
	w.refuse("POST", registerPath, "", map[string]any{"username": "eve"}, 400, matrix.CodeMissingParam)
	if strings.Contains(w.log.String(), testPassword) {
		t.Error("a password is in the log")
	}
}

func TestNoSharedSecretNoRegistration(t *testing.T) {
	w := newWorld(t)
	w.refuse("GET", registerPath, "", nil, 404, matrix.CodeUnrecognized)
	w.refuse("POST", registerPath, "", map[string]any{}, 404, matrix.CodeUnrecognized)
}

func TestNoncesEnd(t *testing.T) {
	var b nonceBook
	now := time.Now()
	n, _ := b.give(now)
	if b.use(n, now.Add(nonceLifetime+time.Second)) {
		t.Error("a nonce lives for ever")
	}
	for range maxNonces {
		if _, ok := b.give(now); !ok {
			t.Fatal("too few nonces")
		}
	}
	if _, ok := b.give(now); ok {
		t.Error("nonces without end")
	}
	if _, ok := b.give(now.Add(2 * nonceLifetime)); !ok {
		t.Error("no nonces ever again")
	}
}
