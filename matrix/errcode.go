package matrix

// A Code is a Matrix error code, the errcode of an error body.
type Code string

// The error codes that Trunkhall answers with (Matrix client-server API, "Standard error response").
const (
	CodeForbidden       Code = "M_FORBIDDEN"
	CodeUnknownToken    Code = "M_UNKNOWN_TOKEN"
	CodeMissingToken    Code = "M_MISSING_TOKEN"
	CodeUserLocked      Code = "M_USER_LOCKED"
	CodeBadJSON         Code = "M_BAD_JSON"
	CodeNotJSON         Code = "M_NOT_JSON"
	CodeNotFound        Code = "M_NOT_FOUND"
	CodeLimitExceeded   Code = "M_LIMIT_EXCEEDED"
	CodeUnrecognized    Code = "M_UNRECOGNIZED"
	CodeUnknown         Code = "M_UNKNOWN"
	CodeUnauthorized    Code = "M_UNAUTHORIZED"
	CodeUserInUse       Code = "M_USER_IN_USE"
	CodeInvalidUsername Code = "M_INVALID_USERNAME"
	CodeExclusive       Code = "M_EXCLUSIVE"
	CodeWeakPassword    Code = "M_WEAK_PASSWORD"
	CodeRoomInUse       Code = "M_ROOM_IN_USE"
	CodeInvalidState    Code = "M_INVALID_ROOM_STATE"
	CodeUnsupportedRoom Code = "M_UNSUPPORTED_ROOM_VERSION"
	CodeMissingParam    Code = "M_MISSING_PARAM"
	CodeInvalidParam    Code = "M_INVALID_PARAM"
	CodeTooLarge        Code = "M_TOO_LARGE"
	CodeGuestForbidden  Code = "M_GUEST_ACCESS_FORBIDDEN"
	CodeBadState        Code = "M_BAD_STATE"
	CodeCannotLeave     Code = "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM"
	CodeDuplicate       Code = "M_DUPLICATE_ANNOTATION"
	CodeWrongKeys       Code = "M_WRONG_ROOM_KEYS_VERSION"
	CodeThreepidDenied  Code = "M_THREEPID_DENIED"
	CodeConnectFailed   Code = "M_UNABLE_TO_CONNECT"
)

// An Error is an error with a Matrix error code and an HTTP status, for the
// cases in which the five kinds of package call are not precise enough.
type Error struct {
	Status  int    // HTTP status
	Code    Code   // errcode
	Message string // error, for people
	Extra   map[string]any
}

// Error returns the code and the message.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }
