package envelope

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 891000000, time.UTC)

func sample(t testing.TB) Envelope {
	t.Helper()
	e, err := New("/plane", &runnerv1.StackRemove{Stack: "shop", Generation: 7}, now)
	if err != nil {
		t.Fatal(err)
	}
	e.Subject, e.CorrelationID, e.CausationID, e.Generation, e.Deadline = "shop", "c-1", "d-1", 7, now.Add(time.Hour)
	e.Signature = []byte{1, 2, 3}
	return e
}

func TestHeadersParseRoundTrip(t *testing.T) {
	in := sample(t)
	out, err := Parse(append(in.Headers(), Header{"traceparent", []byte("\x00foreign")}), in.Data, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("\n in %+v\nout %+v", in, out)
	}
	msg, err := out.Message()
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(msg, &runnerv1.StackRemove{Stack: "shop", Generation: 7}) {
		t.Errorf("got %v", msg)
	}
}

func TestJSON(t *testing.T) {
	e := Envelope{ID: "1", Type: "axion.runner.v1.ServiceScale", ContentType: JSON, Data: []byte(`{"service":"shop_web","replicas":"3"}`)}
	msg, err := e.Message()
	if err != nil {
		t.Fatal(err)
	}
	if got := msg.(*runnerv1.ServiceScale); got.GetReplicas() != 3 {
		t.Errorf("got %v", got)
	}
}

func TestBadInput(t *testing.T) {
	set := func(key, value string) func(*[]Header) {
		return func(hs *[]Header) {
			for i := range *hs {
				if (*hs)[i].Key == key {
					(*hs)[i].Value = []byte(value)
					return
				}
			}
			*hs = append(*hs, Header{key, []byte(value)})
		}
	}
	for name, tc := range map[string]struct {
		change func(*[]Header)
		code   string
		word   string
	}{
		"no version":     {set("ce_specversion", ""), "bad_envelope", "ce_specversion"},
		"version 2":      {set("ce_specversion", "2.0"), "bad_envelope", "2.0"},
		"no id":          {set("ce_id", ""), "bad_envelope", "ce_id"},
		"long id":        {set("ce_id", strings.Repeat("x", MaxID+1)), "bad_envelope", "ce_id"},
		"control bytes":  {set("ce_id", "a\nb"), "bad_envelope", "ce_id"},
		"no type":        {set("ce_type", ""), "bad_envelope", "ce_type"},
		"no source":      {set("ce_source", ""), "bad_envelope", "ce_source"},
		"bad time":       {set("ce_time", "yesterday"), "bad_envelope", "ce_time"},
		"bad generation": {set("ce_generation", "-1"), "bad_envelope", "ce_generation"},
		"bad signature":  {set("ce_signature", "%%"), "bad_envelope", "ce_signature"},
		"content type":   {set("content-type", "text/plain"), "bad_envelope", "text/plain"},
		"long attribute": {set("ce_subject", strings.Repeat("x", MaxAttribute+1)), "bad_envelope", "ce_subject"},
		"twice":          {func(hs *[]Header) { *hs = append(*hs, Header{"CE_ID", []byte("2")}) }, "bad_envelope", "twice"},
		"many headers": {func(hs *[]Header) {
			for range MaxHeaders {
				*hs = append(*hs, Header{"x", nil})
			}
		}, "bad_envelope", "headers"},
	} {
		t.Run(name, func(t *testing.T) {
			e := sample(t)
			hs := e.Headers()
			tc.change(&hs)
			_, err := Parse(hs, e.Data, 0)
			f := failure.Of(err)
			if f == nil || f.Class != failure.Invalid || f.Code != tc.code || !strings.Contains(f.Message, tc.word) {
				t.Errorf("got %+v", f)
			}
		})
	}
	e := sample(t)
	if _, err := Parse(e.Headers(), make([]byte, 101), 100); failure.Of(err).Code != "too_large" {
		t.Errorf("got %v", err)
	}
}

func TestMessageRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		e    Envelope
		code string
	}{
		"unknown type":     {Envelope{Type: "axion.runner.v1.Nonsense", ContentType: Protobuf}, "unknown_type"},
		"foreign type":     {Envelope{Type: "google.protobuf.Duration", ContentType: Protobuf}, "unknown_type"},
		"unreadable proto": {Envelope{Type: "axion.runner.v1.StackDeploy", ContentType: Protobuf, Data: []byte{0xff, 0xff}}, "unreadable"},
		"unreadable json":  {Envelope{Type: "axion.runner.v1.StackDeploy", ContentType: JSON, Data: []byte(`{"stak":"x"}`)}, "unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tc.e.Message(); failure.Of(err).Code != tc.code {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := New("/x", durationpb.New(time.Second), now); err == nil {
		t.Error("a foreign message must be refused")
	}
}

func TestSignature(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e := sample(t)
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	back, err := Parse(e.Headers(), e.Data, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !back.Verify(&key.PublicKey) {
		t.Error("own signature refused")
	}
	if back.Verify(&other.PublicKey) {
		t.Error("foreign key accepted")
	}
	for name, change := range map[string]func(*Envelope){
		"id":          func(e *Envelope) { e.ID += "x" },
		"source":      func(e *Envelope) { e.Source += "x" },
		"type":        func(e *Envelope) { e.Type += "x" },
		"subject":     func(e *Envelope) { e.Subject += "x" },
		"causation":   func(e *Envelope) { e.CausationID += "x" },
		"correlation": func(e *Envelope) { e.CorrelationID += "x" },
		"generation":  func(e *Envelope) { e.Generation++ },
		"time":        func(e *Envelope) { e.Time = e.Time.Add(1) },
		"data":        func(e *Envelope) { e.Data = append([]byte{0}, e.Data...) },
		"none":        func(e *Envelope) { e.Signature = nil },
	} {
		c := back
		change(&c)
		if c.Verify(&key.PublicKey) {
			t.Errorf("changed %s is still accepted", name)
		}
	}
}

func TestOutcomeID(t *testing.T) {
	if id := OutcomeID("a"); id != OutcomeID(strings.ToLower("A")) || id == OutcomeID("b") {
		t.Error("an outcome's id is a function of the command's")
	}
}

// FuzzParse: no foreign bytes may do more than fail, and what parses survives a round trip.
func FuzzParse(f *testing.F) {
	e := sample(f)
	for _, h := range e.Headers() {
		f.Add(h.Key, h.Value, e.Data)
	}
	f.Fuzz(func(t *testing.T, key string, value, data []byte) {
		hs := append(sample(t).Headers(), Header{key, value})
		e, err := Parse(hs, data, 1<<20)
		if err != nil {
			if failure.ClassOf(err) != failure.Invalid {
				t.Fatalf("class %v", failure.ClassOf(err))
			}
			return
		}
		again, err := Parse(e.Headers(), e.Data, 1<<20)
		if err != nil || !reflect.DeepEqual(e.Headers(), again.Headers()) {
			t.Fatalf("round trip: %v", err)
		}
		_, _ = e.Message()
	})
}
