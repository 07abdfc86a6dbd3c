package call

import "errors"

// The five kinds of error. Packages wrap one of them with what they were doing;
// each protocol edge maps the kind to its own code (M_..., HTTP, SIP status).
// Any other error is a defect or a failure of the machine: "internal".
var (
	ErrNotFound    = errors.New("not found")
	ErrForbidden   = errors.New("forbidden")
	ErrInvalid     = errors.New("invalid")
	ErrConflict    = errors.New("conflict")
	ErrUnavailable = errors.New("unavailable")
)

// Kinds lists every error kind, for the tests that walk the edges' tables.
func Kinds() []error {
	return []error{ErrNotFound, ErrForbidden, ErrInvalid, ErrConflict, ErrUnavailable}
}
