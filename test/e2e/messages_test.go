package e2e

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/identity"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

type noWarnings struct{}

func (noWarnings) Set(string, runnerv1.HealthSeverity, string, string) {}
func (noWarnings) Clear(string)                                        {}

// asAgent is the installed agent's identity, read from its volume as root can: the tests have no other way to write to its cluster's topic as a broken
// or malicious sender would.
func asAgent(t *testing.T) *identity.Identity {
	t.Helper()
	dir, err := output("docker", "volume", "inspect", "--format", "{{.Mountpoint}}", agentStack+"_state")
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(
		identity.Config{StateDir: strings.TrimSpace(dir), PlaneAddress: planeAddress, Token: func(context.Context) (string, error) { return "", errors.New("none") }},
		identity.Deps{
			Node: func(context.Context) (*runnerv1.NodeFacts, error) { return nil, errors.New("none") },
			Log:  slog.New(slog.DiscardHandler), Warn: noWarnings{},
		})
	if err != nil {
		t.Skipf("the agent's volume cannot be read from here: %v", err)
	}
	if id.Kafka() == nil {
		t.Skip("the agent's volume cannot be read from here")
	}
	return id
}

// produce writes a message to the cluster's topic.
func produce(t *testing.T, id *identity.Identity, m bus.Message) {
	t.Helper()
	access := id.Kafka()
	m.Topic = access.GetClusterTopic()
	p, err := bus.NewProducer(
		bus.ProducerConfig{Config: bus.Config{Name: "e2e", Brokers: access.GetBrokers(), TLS: id.KafkaTLS(), SASL: access.GetSasl(), ClientID: "e2e"}, Topics: []string{m.Topic}},
		bus.ProducerDeps{Log: slog.New(slog.DiscardHandler), Warn: noWarnings{}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Produce(t.Context(), []bus.Message{m}); err != nil {
		t.Fatal(err)
	}
}

// TestBadMessages: what cannot be read is told with its reason, and the next message is handled. A person's protojson message is a command like any other.
func TestBadMessages(t *testing.T) {
	w := installed(t)
	op := w.operator(t)
	id := asAgent(t)
	marker := uuid.NewString()
	produce(t, id, bus.Message{Key: []byte("x"), Value: []byte("hello " + marker)})
	large := envelope.Envelope{ID: uuid.NewString(), Type: "axion.runner.v1.StackDeploy", Source: "/people/e2e", ContentType: envelope.Protobuf}
	produce(t, id, bus.Message{Key: []byte("x"), Headers: large.Headers(), Value: make([]byte, 9<<20)})
	unknown := envelope.Envelope{ID: uuid.NewString(), Type: "axion.runner.v1.StackDance", Source: "/people/e2e", ContentType: envelope.Protobuf}
	produce(t, id, bus.Message{Key: []byte("x"), Headers: unknown.Headers()})
	scale := envelope.Envelope{ID: uuid.NewString(), Type: "axion.runner.v1.ServiceScale", Source: "/people/e2e", ContentType: envelope.JSON, CorrelationID: marker}
	produce(t, id, bus.Message{Key: []byte("x"), Headers: scale.Headers(), Value: []byte(`{"service":"axt-e2e-no-such_web","replicas":"2"}`)})

	type told struct{ code, correlation string }
	want := map[string]string{large.ID: "too_large", unknown.ID: "unknown_type", scale.ID: ""}
	found := map[string]told{}
	rejected := map[string]bool{}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	stream, err := op.WatchEvents(ctx, &planev1.WatchEventsRequest{ClusterId: cluster, Follow: true, After: 1})
	if err != nil {
		t.Fatal(err)
	}
	for len(found) < len(want) || !rejected["bad_envelope"] {
		ev, err := stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("told so far: %v %v: %v", found, rejected, err)
			}
			break
		}
		msg, err := envelope.Envelope{Type: ev.GetType(), ContentType: envelope.Protobuf, Data: ev.GetData()}.Message()
		if err != nil {
			t.Fatal(err)
		}
		switch m := msg.(type) {
		case *runnerv1.MessageRejected:
			rejected[m.GetFailure().GetCode()] = true
		case *runnerv1.CommandOutcome:
			if _, ok := want[ev.GetCausationId()]; ok {
				found[ev.GetCausationId()] = told{m.GetFailure().GetCode(), ev.GetCorrelationId()}
				if m.GetStatus() == runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
					t.Errorf("%v succeeded", ev)
				}
			}
		}
	}
	for id, code := range want {
		if code != "" && found[id].code != code {
			t.Errorf("%s was told with code %q, want %q", id, found[id].code, code)
		}
	}
	if found[scale.ID].correlation != marker || found[scale.ID].code == "unreadable" {
		t.Errorf("the JSON command was told as %+v", found[scale.ID])
	}
}

// TestNoSecretIsLogged uses each kind of secret and looks for it in all that agent and plane have logged so far.
func TestNoSecretIsLogged(t *testing.T) {
	w := installed(t)
	id := asAgent(t)
	stack := stackName(t, "secrets")
	const secret, password = "e2e-secret-4711-content", "e2e-registry-password-4712"
	d := plainDeploy(stack, `version: "3.9"
services:
  web:
    image: axion/hello:e2e
    environment: {FROM_CALLER: "${E2E_VARIABLE}"}
    configs: [{source: greeting, target: /greeting}]
    secrets: [s]
    deploy: {endpoint_mode: dnsrr}
configs:
  greeting: {file: ./greeting.txt}
secrets:
  s: {file: ./s.txt}
`)
	plain := d.GetBundle().GetPlain()
	plain.Files = append(plain.Files, &runnerv1.BundleFile{Path: "/w/x/y/s.txt", Content: []byte(secret)})
	plain.Variables = map[string]string{"E2E_VARIABLE": "e2e-variable-4713"}
	plain.RegistryCredentials = []*runnerv1.RegistryCredential{{Server: "registry.invalid", Username: "u", Password: password}}
	d.Options.WithRegistryAuth = true
	o := submit(t, w.operator(t), &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: d}})
	if o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Fatalf("outcome %v", o)
	}
	var logs strings.Builder
	for _, args := range [][]string{{"service", "logs", "--raw", agentService}, {"logs", planeName}} {
		out, err := both("docker", args...)
		if err != nil {
			t.Fatal(err)
		}
		logs.WriteString(out)
	}
	if logs.Len() < 1000 {
		t.Fatalf("only %d bytes of logs", logs.Len())
	}
	token := strings.Split(w.token, ".")
	for name, value := range map[string]string{
		"the join token":             token[1],
		"a secret's content":         secret,
		"a registry password":        password,
		"a variable":                 "e2e-variable-4713",
		"the agent's Kafka password": id.Kafka().GetSasl().GetPassword(),
	} {
		if value == "" || strings.Contains(logs.String(), value) {
			t.Errorf("%s is in the logs, or empty", name)
		}
	}
	// Nothing of the bundle is left on the node.
	if out, err := w.workDir(); err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("the work folder holds %q %v", out, err)
	}
}
