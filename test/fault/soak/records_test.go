package soak

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/program"
)

const (
	// goodGenerations succeed, then badGenerations fail: more than are kept, so that the last good one is older than all of these.
	goodGenerations, badGenerations = 19, 11
	// What must be in no record, and what must be in them: else nothing is proved.
	secretFile, secretVariable, secretPassword, openVariable = "file-4d1c9e", "variable-77a0b2", "password-c03f5d", "open-19e6aa"
)

// TestRecords: after thirty generations of a stack no more than ten manifests are kept, and the last good one; and nothing secret is in any record.
func TestRecords(t *testing.T) {
	planeBinary, agentBinary := program.Build(t, "axion-plane"), program.Build(t, "axion-agent")
	fault.Alone(t)
	w := newWorld(t, planeBinary, agentBinary)
	stack := w.prefix + "-records"
	var good uint64
	for i := range goodGenerations + badGenerations {
		ends := i < goodGenerations
		resp, err := w.operator.SubmitCommand(t.Context(), &planev1.SubmitCommandRequest{
			ClusterId: cluster, Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: w.secretive(stack, i, ends)},
		})
		if err != nil {
			t.Fatal(err)
		}
		outcome, err := w.outcome(t.Context(), resp.GetCommandId())
		if err != nil {
			t.Fatal(err)
		}
		if succeeded := outcome.GetStatus() == runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED; succeeded != ends {
			t.Fatalf("generation %d ended as %s: %s", resp.GetGeneration(), outcome.GetStatus(), outcome.GetFailure())
		}
		if ends {
			good = resp.GetGeneration()
		}
	}
	kept := w.checkKept(t, stack, good)
	searched := w.checkSecrets(t)
	fault.Report(t, fmt.Sprintf("none: %d generations of a stack, the last %d of them failing", goodGenerations+badGenerations, badGenerations),
		"10 manifests kept and the last good one; no secret file, secret variable or credential in a record",
		fmt.Sprintf("%d kept, generation %d among them; none in %d records", kept, good, searched))
}

// secretive is a deployment that brings secrets in each of the ways in which it can. One that does not end well has an image that does not exist.
func (w *world) secretive(stack string, i int, ends bool) *runnerv1.StackDeploy {
	image, replicas, timeout := w.image, 0, time.Minute
	if !ends {
		image, replicas, timeout = "axt-soak/there-is-no-such-image", 1, time.Second
	}
	text := fmt.Sprintf(`version: "3.9"
services:
  web:
    image: %s
    environment: ["MARK=%d", "OPEN=${OPEN}", "DB_PASSWORD=${DB_PASSWORD}"]
    secrets: [key]
    networks: [outside]
    deploy: {replicas: %d, endpoint_mode: dnsrr}
secrets:
  key: {file: ./key.txt}
networks:
  outside: {external: true, name: host}
`, image, i, replicas)
	d := bundleOf(stack, text, map[string]string{"key.txt": secretFile}, map[string]string{"OPEN": openVariable, "DB_PASSWORD": secretVariable})
	d.Options.Timeout, d.Options.WithRegistryAuth = durationpb.New(timeout), true
	d.GetBundle().GetPlain().RegistryCredentials = []*runnerv1.RegistryCredential{{Server: "registry.example.com", Username: "axion", Password: secretPassword}}
	return d
}

// checkKept returns how many manifests are kept of the stack.
func (w *world) checkKept(t *testing.T, stack string, good uint64) int {
	t.Helper()
	heads, manifests, err := w.records(t.Context(), w.prefix)
	if err != nil {
		t.Fatal(err)
	}
	if len(heads[stack]) != 1 {
		t.Fatalf("stack %s has %d heads", stack, len(heads[stack]))
	}
	var names []string
	for _, m := range manifests[stack] {
		names = append(names, m.Spec.Name)
	}
	if len(names) > keptManifests {
		t.Errorf("%d manifests are kept: %q", len(names), names)
	}
	last := heads[stack][0].Spec.Labels["axion.good"]
	if !strings.Contains(last, fmt.Sprintf("-%d-", good)) || !slices.Contains(names, last) {
		t.Errorf("the last good generation is %d, its manifest %q is not among %q", good, last, names)
	}
	return len(names)
}

// checkSecrets looks through all that this world's agent keeps in the Swarm and returns how many records these are.
func (w *world) checkSecrets(t *testing.T) int {
	t.Helper()
	heads, manifests, err := w.records(t.Context(), w.prefix)
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	n := 0
	for _, list := range manifests {
		for _, m := range list {
			text, err := decoder.DecodeAll(m.Spec.Data, nil)
			if err != nil {
				t.Fatalf("manifest %s: %v", m.Spec.Name, err)
			}
			if !bytes.Contains(text, []byte(openVariable)) {
				t.Errorf("manifest %s does not hold what is not secret: %s", m.Spec.Name, text)
			}
			noSecret(t, m.Spec.Name, string(text)+fmt.Sprint(m.Spec.Labels))
			n++
		}
	}
	for _, list := range heads {
		for _, h := range list {
			noSecret(t, h.Spec.Name, fmt.Sprint(h.Spec.Labels))
			n++
		}
	}
	return n
}

// noSecret looks for the secrets, also in base64 at each of its three alignments.
func noSecret(t *testing.T, name, text string) {
	t.Helper()
	for _, secret := range []string{secretFile, secretVariable, secretPassword} {
		forms := []string{secret}
		for shift := range 3 {
			encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
			forms = append(forms, encoded[4:len(encoded)-4]) // without what its neighbours change
		}
		for _, form := range forms {
			if strings.Contains(text, form) {
				t.Errorf("record %s holds the secret %q", name, secret)
			}
		}
	}
}
