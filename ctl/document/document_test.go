package document_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/axion/runner-agent/ctl/document"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		document.Status(runnerv1.OutcomeStatus_OUTCOME_STATUS_ROLLED_BACK):   "rolled_back",
		document.State(runnerv1.ServiceState_SERVICE_STATE_ROLLING_BACK):     "rolling_back",
		document.Kind(runnerv1.ObjectKind_OBJECT_KIND_CONFIG):                "config",
		document.Action(runnerv1.ObjectAction_OBJECT_ACTION_REMOVED):         "removed",
		document.Level(runnerv1.NoticeLevel_NOTICE_LEVEL_WARNING):            "warning",
		document.Severity(runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH):      "high",
		document.Class(runnerv1.FailureClass_FAILURE_CLASS_INVALID):          "invalid",
		document.Role(runnerv1.NodeRole_NODE_ROLE_UNSPECIFIED):               "unknown",
		document.Role(runnerv1.NodeRole_NODE_ROLE_MANAGER):                   "manager",
		document.Status(runnerv1.OutcomeStatus(99)):                          "99",
		document.OfLogLine(&runnerv1.LogLine{Text: []byte("x\r\n")}).Source:  "stdout",
		document.OfLogLine(&runnerv1.LogLine{Text: []byte("line\r\n")}).Text: "line",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestForeignError: an error that is no failure is a document too.
func TestForeignError(t *testing.T) {
	if f := document.OfError(errors.New("disk full")); f.Class != "internal" || f.Message != "disk full" {
		t.Errorf("got %+v", f)
	}
}

// TestUnknownEvent: what this version cannot read is passed on as it came.
func TestUnknownEvent(t *testing.T) {
	var out bytes.Buffer
	if err := document.WriteLine(&out, document.OfEvent(&planev1.EventRecord{Position: 1, Type: "x", Data: []byte{1, 2, 255}}, nil)); err != nil {
		t.Fatal(err)
	}
	var d struct {
		Data       json.RawMessage
		DataBase64 []byte `json:"data_base64"`
	}
	if err := json.Unmarshal(out.Bytes(), &d); err != nil || d.Data != nil || !bytes.Equal(d.DataBase64, []byte{1, 2, 255}) || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("%q, %v", out.String(), err)
	}
}
