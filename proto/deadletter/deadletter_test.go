package deadletter

import (
	"reflect"
	"strings"
	"testing"

	"github.com/axion/runner-agent/proto/envelope"
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	original := []envelope.Header{{Key: "ce_id", Value: []byte("1")}, {Key: "traceparent", Value: []byte{0xff}}, {Key: "ce_id", Value: nil}}
	want := Notice{AgentID: "a-1", Topic: "runner.commands.a-1", Partition: 3, Offset: 1 << 40, Class: "invalid", Code: "bad_envelope", Reason: "no id"}
	forged := Notice{AgentID: "a-2", Topic: "x"}.Headers(original)
	got, headers := Split(want.Headers(forged))
	if got != want || !reflect.DeepEqual(headers, original) {
		t.Errorf("%+v with %v", got, headers)
	}
}

func TestNoNumbers(t *testing.T) {
	n, _ := Split([]envelope.Header{{Key: "Axion-DLQ-Partition", Value: []byte("x")}, {Key: headerOffset, Value: []byte("-7")}})
	if n.Partition != -1 || n.Offset != -1 {
		t.Errorf("%+v", n)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add("ce_id", []byte("1"), headerOffset, []byte("9223372036854775808"))
	f.Add(headerPartition, []byte("2147483648"), headerAgent, []byte("\xff"))
	f.Fuzz(func(t *testing.T, k1 string, v1 []byte, k2 string, v2 []byte) {
		n, original := Split([]envelope.Header{{Key: k1, Value: v1}, {Key: k2, Value: v2}})
		if n.Partition < -1 || n.Offset < -1 {
			t.Errorf("%+v", n)
		}
		for _, h := range original {
			if strings.HasPrefix(strings.ToLower(h.Key), Prefix) {
				t.Errorf("%q was left", h.Key)
			}
		}
	})
}
