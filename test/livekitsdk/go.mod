module github.com/trunkhall/trunkhall/test/livekitsdk

go 1.26.0

require (
	github.com/livekit/protocol v1.50.4
	github.com/livekit/server-sdk-go/v2 v2.18.1
)
