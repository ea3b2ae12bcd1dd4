package document

import (
	"bytes"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Event is one stored event.
type Event struct {
	Position      uint64     `json:"position"`
	ID            string     `json:"id"`
	Type          string     `json:"type"`
	ClusterID     string     `json:"cluster_id"`
	AgentID       string     `json:"agent_id,omitempty"`
	Subject       string     `json:"subject,omitempty"`
	CausationID   string     `json:"causation_id,omitempty"`
	CorrelationID string     `json:"correlation_id,omitempty"`
	Time          *time.Time `json:"time,omitempty"`
	// Data is the message in the contract's own JSON (protojson, field names as in the contract); absent if its type is not known.
	Data json.RawMessage `json:"data,omitempty"`
	// DataBase64 is the message as it came, if its type is not known.
	DataBase64 []byte `json:"data_base64,omitempty"`
}

// OfEvent returns an event as a document; message may be nil.
func OfEvent(record *planev1.EventRecord, message proto.Message) Event {
	d := Event{
		Position: record.GetPosition(), ID: record.GetId(), Type: record.GetType(), ClusterID: record.GetClusterId(), AgentID: record.GetAgentId(),
		Subject: record.GetSubject(), CausationID: record.GetCausationId(), CorrelationID: record.GetCorrelationId(), Time: at(record.GetTime()),
	}
	if message != nil {
		d.Data = contractJSON(message)
	}
	if d.Data == nil {
		d.DataBase64 = record.GetData()
	}
	return d
}

// contractJSON returns nil if the message cannot be written as JSON. protojson varies its blanks on purpose; they are taken out.
func contractJSON(message proto.Message) json.RawMessage {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		return nil
	}
	var compact bytes.Buffer
	if json.Compact(&compact, text) != nil {
		return nil
	}
	return compact.Bytes()
}

// LogLine is one line of a log.
type LogLine struct {
	// Source is "stdout" or "stderr".
	Source string `json:"source"`
	// Text is the line as `docker service logs` prints it, without its line end; bytes that are no text are replaced.
	Text string `json:"text"`
}

// OfLogLine returns a line as a document.
func OfLogLine(line *runnerv1.LogLine) LogLine {
	source := "stdout"
	if line.GetSource() == runnerv1.LogSource_LOG_SOURCE_STDERR {
		source = "stderr"
	}
	return LogLine{Source: source, Text: string(bytes.TrimRight(line.GetText(), "\r\n"))}
}
