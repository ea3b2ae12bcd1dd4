// Package envelope is the CloudEvents 1.0 envelope of every message on Kafka, in the Kafka protocol binding's binary content mode:
// attributes are headers with the prefix "ce_", the data is the message's value. Agent and plane share it.
package envelope

import (
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Content types of the data.
const (
	Protobuf = "application/protobuf"
	JSON     = "application/json"
)

// TypePrefix begins the type of every message of this contract.
const TypePrefix = "axion.runner.v1."

// Bounds on what comes from outside.
const (
	// MaxHeaders is the number of headers of one message.
	MaxHeaders = 64
	// MaxAttribute is the length of one attribute, in bytes.
	MaxAttribute = 1024
	// MaxID is the length of a message's id, in bytes.
	MaxID = 128
	// DefaultMaxData is the size of the data, in bytes, unless configured.
	DefaultMaxData = 8 << 20
)

// Header is a Kafka header.
type Header struct {
	Key   string
	Value []byte
}

// Envelope is one message: attributes and data.
type Envelope struct {
	// ID is unique per source; a command's id is its envelope's.
	ID string
	// Type is TypePrefix and the message's name.
	Type string
	// Source is a URI reference, for example "/agents/a1" or "/plane".
	Source string
	// Subject is the stack or service; may be empty.
	Subject string
	// Time is when the message was made; zero if unknown.
	Time time.Time
	// CorrelationID is copied from a command to all that it causes; may be empty.
	CorrelationID string
	// CausationID is the id of the message that caused this one; may be empty.
	CausationID string
	// Generation is a command's generation; 0 if it has none.
	Generation uint64
	// Deadline is when a command is no longer to be begun; zero if never.
	Deadline time.Time
	// ContentType is Protobuf or JSON.
	ContentType string
	// Signature proves who wrote it (Sign, Verify); may be nil.
	Signature []byte
	// Data is the encoded message.
	Data []byte
}

// New returns an envelope around msg, as protobuf, with a random id and the time now. It fails only if msg cannot be encoded or is of another contract.
func New(source string, msg proto.Message, now time.Time) (Envelope, error) {
	name := string(msg.ProtoReflect().Descriptor().FullName())
	if !strings.HasPrefix(name, TypePrefix) {
		return Envelope{}, fmt.Errorf("%s is not a message of %s*", name, TypePrefix)
	}
	data, err := proto.Marshal(msg)
	if err != nil {
		return Envelope{}, fmt.Errorf("encode %s: %w", name, err)
	}
	return Envelope{ID: uuid.NewString(), Type: name, Source: source, Time: now.UTC(), ContentType: Protobuf, Data: data}, nil
}

// outcomeNamespace makes ids of outcomes differ from all other name-based UUIDs.
var outcomeNamespace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("axion.runner.v1/outcome"))

// OutcomeID returns the id of a command's outcome event. It is a function of the command's id, so that two agents that decide the same command name it alike.
func OutcomeID(commandID string) string {
	return uuid.NewSHA1(outcomeNamespace, []byte(commandID)).String()
}

// Headers returns the attributes as Kafka headers. Attributes without a value are left out.
func (e Envelope) Headers() []Header {
	hs := []Header{{"ce_specversion", []byte("1.0")}}
	add := func(key, value string) {
		if value != "" {
			hs = append(hs, Header{key, []byte(value)})
		}
	}
	add("ce_id", e.ID)
	add("ce_type", e.Type)
	add("ce_source", e.Source)
	add("ce_subject", e.Subject)
	add("ce_time", formatTime(e.Time))
	add("ce_correlationid", e.CorrelationID)
	add("ce_causationid", e.CausationID)
	if e.Generation != 0 {
		add("ce_generation", strconv.FormatUint(e.Generation, 10))
	}
	add("ce_deadline", formatTime(e.Deadline))
	add("ce_signature", encodeSignature(e.Signature))
	add("content-type", e.ContentType)
	return hs
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// Parse reads an envelope. It returns as much as it could read together with a failure of class Invalid, so that a caller can still name the message:
// codes "bad_envelope" (attributes missing, malformed or too long), "too_large" (data over maxData bytes; 0 means DefaultMaxData).
func Parse(headers []Header, value []byte, maxData int) (Envelope, error) {
	e := Envelope{Data: value}
	if maxData <= 0 {
		maxData = DefaultMaxData
	}
	bad := func(format string, args ...any) (Envelope, error) {
		return e, failure.New(failure.Invalid, "bad_envelope", e.ID, format, args...)
	}
	var firstErr error
	note := func(format string, args ...any) {
		if firstErr == nil {
			firstErr = fmt.Errorf(format, args...)
		}
	}
	if len(headers) > MaxHeaders {
		return bad("message has %d headers, at most %d are allowed", len(headers), MaxHeaders)
	}
	version := ""
	seen := make(map[string]bool, len(headers))
	for _, h := range headers {
		key := strings.ToLower(h.Key)
		if key != "content-type" && !strings.HasPrefix(key, "ce_") {
			continue // foreign headers, as tracing adds them, are no business of ours
		}
		if seen[key] {
			note("header %s appears twice", key)
			continue
		}
		seen[key] = true
		v := string(h.Value)
		if len(v) > MaxAttribute || !printable(v) {
			note("header %s is longer than %d bytes or not printable text", key, MaxAttribute)
			continue
		}
		var err error
		switch key {
		case "ce_specversion":
			version = v
		case "ce_id":
			e.ID = v
		case "ce_type":
			e.Type = v
		case "ce_source":
			e.Source = v
		case "ce_subject":
			e.Subject = v
		case "ce_time":
			e.Time, err = time.Parse(time.RFC3339Nano, v)
		case "ce_correlationid":
			e.CorrelationID = v
		case "ce_causationid":
			e.CausationID = v
		case "ce_generation":
			e.Generation, err = strconv.ParseUint(v, 10, 64)
		case "ce_deadline":
			e.Deadline, err = time.Parse(time.RFC3339Nano, v)
		case "ce_signature":
			e.Signature, err = decodeSignature(v)
		case "content-type":
			e.ContentType, _, err = mime.ParseMediaType(v)
		}
		if err != nil {
			note("header %s: %w", key, err)
		}
	}
	switch {
	case firstErr != nil:
		return bad("%w", firstErr)
	case version != "1.0":
		return bad("header ce_specversion is %q, 1.0 is needed", version)
	case e.ID == "" || len(e.ID) > MaxID:
		return bad("header ce_id has %d bytes, 1 to %d are needed", len(e.ID), MaxID)
	case e.Type == "":
		return bad("message %s: header ce_type is missing", e.ID)
	case e.Source == "":
		return bad("message %s: header ce_source is missing", e.ID)
	case e.ContentType != Protobuf && e.ContentType != JSON:
		return bad("message %s: content-type is %q, %s or %s is needed", e.ID, e.ContentType, Protobuf, JSON)
	case len(value) > maxData:
		return e, failure.New(failure.Invalid, "too_large", e.ID, "message %s has %d bytes, at most %d are allowed", e.ID, len(value), maxData).
			WithHint("send fewer or smaller files, or raise the limit in the agent's configuration")
	}
	return e, nil
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// Message decodes the data into the message that Type names. Failures of class Invalid: "unknown_type", "unreadable".
func (e Envelope) Message() (proto.Message, error) {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(e.Type))
	if err != nil || !strings.HasPrefix(e.Type, TypePrefix) || mt.Descriptor().ParentFile().Package() != runnerv1.File_axion_runner_v1_command_proto.Package() {
		return nil, failure.New(failure.Invalid, "unknown_type", e.Type, "message %s: type %q is not known", e.ID, e.Type)
	}
	msg := mt.New().Interface()
	switch e.ContentType {
	case Protobuf:
		err = proto.Unmarshal(e.Data, msg)
	case JSON:
		err = protojson.Unmarshal(e.Data, msg)
	default:
		err = errors.New("content-type " + e.ContentType + " is not supported")
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "unreadable", e.Type, "message %s is no readable %s: %w", e.ID, e.Type, err)
	}
	return msg, nil
}
