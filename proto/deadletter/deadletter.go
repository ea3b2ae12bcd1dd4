// Package deadletter is the form of the messages on the dead-letter topic: the message as it came, and headers that say who gave it up, where it was and why.
// Agents write them, planes read them. They are not signed, so what the headers say is a claim.
package deadletter

import (
	"strconv"
	"strings"

	"github.com/axion/runner-agent/proto/envelope"
)

// Prefix begins the names of the headers that a message gets on its way to the dead-letter topic, beside those that it came with.
const Prefix = "axion-dlq-"

const (
	headerClass     = Prefix + "class"
	headerCode      = Prefix + "code"
	headerReason    = Prefix + "reason"
	headerTopic     = Prefix + "topic"
	headerPartition = Prefix + "partition"
	headerOffset    = Prefix + "offset"
	headerAgent     = Prefix + "agent"
)

// Notice says who gave a message up, where it was and why.
type Notice struct {
	// AgentID is who gave it up.
	AgentID string
	// Topic, Partition and Offset are where it was.
	Topic     string
	Partition int32
	Offset    int64
	// Class, Code and Reason are of the failure: its class in lower case, its code, and a sentence.
	Class, Code, Reason string
}

// Headers returns the headers of a dead letter: those that the message came with, without any that look like a notice, and the notice.
func (n Notice) Headers(original []envelope.Header) []envelope.Header {
	_, headers := Split(original)
	for _, h := range [][2]string{
		{headerClass, n.Class},
		{headerCode, n.Code},
		{headerReason, n.Reason},
		{headerTopic, n.Topic},
		{headerPartition, strconv.Itoa(int(n.Partition))},
		{headerOffset, strconv.FormatInt(n.Offset, 10)},
		{headerAgent, n.AgentID},
	} {
		headers = append(headers, envelope.Header{Key: h[0], Value: []byte(h[1])})
	}
	return headers
}

// Split parts the headers of a dead letter into its notice and those that the message came with. What is missing in the notice is zero; of a header that is
// there twice the last counts. A partition or an offset that is no number is -1.
func Split(headers []envelope.Header) (n Notice, original []envelope.Header) {
	original = make([]envelope.Header, 0, len(headers))
	for _, h := range headers {
		if !strings.HasPrefix(strings.ToLower(h.Key), Prefix) {
			original = append(original, h)
			continue
		}
		v := string(h.Value)
		switch strings.ToLower(h.Key) {
		case headerClass:
			n.Class = v
		case headerCode:
			n.Code = v
		case headerReason:
			n.Reason = v
		case headerTopic:
			n.Topic = v
		case headerPartition:
			n.Partition = int32(number(v, 32))
		case headerOffset:
			n.Offset = number(v, 64)
		case headerAgent:
			n.AgentID = v
		}
	}
	return n, original
}

func number(text string, bits int) int64 {
	n, err := strconv.ParseInt(text, 10, bits)
	if err != nil || n < 0 {
		return -1
	}
	return n
}
