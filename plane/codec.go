package plane

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// maxStranger bounds the messages that are read of callers of whom nothing is known yet, in bytes. The largest is an Enroll: a certificate request of 4 KiB at
// most, a join token, and a node's facts.
const maxStranger = 64 << 10

// codec is gRPC's own, but refuses large messages to the services that are open to everybody before they are decoded: decoding can multiply a message's size.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal decodes a message.
func (c codec) Unmarshal(data mem.BufferSlice, message any) error {
	switch message.(type) {
	case *runnerv1.EnrollRequest, *runnerv1.RenewRequest, *healthv1.HealthCheckRequest:
		if n := data.Len(); n > maxStranger {
			return fmt.Errorf("the message has %d bytes, at most %d are allowed", n, maxStranger)
		}
	}
	return c.CodecV2.Unmarshal(data, message)
}
