package homeserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// Authenticate returns whose access token it is, and whether they administer this
// server, for other parts that serve HTTP to the same users. The error wraps
// call.ErrForbidden if the token is nobody's any more, or a guest's.
func (s *Server) Authenticate(ctx context.Context, token string) (user matrix.UserID, admin bool, err error) {
	hash := hashToken(token)
	owner, err := s.deps.Store.TokenOwner(ctx, hash)
	switch {
	case errors.Is(err, call.ErrNotFound):
		return "", false, fmt.Errorf("unknown access token: %w", call.ErrForbidden)
	case err != nil:
		return "", false, err
	case !owner.Expires.IsZero() && time.Now().After(owner.Expires):
		return "", false, fmt.Errorf("expired access token: %w", call.ErrForbidden)
	case owner.Guest:
		return "", false, fmt.Errorf("guests may not do this: %w", call.ErrForbidden)
	}
	if owner.Fresh {
		if err := s.deps.Store.TokenUsed(ctx, hash); err != nil {
			return "", false, err
		}
	}
	account, err := s.deps.Store.User(ctx, owner.User)
	if err != nil {
		return "", false, err
	}
	if account.Deactivated {
		return "", false, fmt.Errorf("the account is deactivated: %w", call.ErrForbidden)
	}
	return owner.User, account.Admin, nil
}
