package fence

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// Names and bounds of what is kept in the Swarm. None of these objects carries the label of a stack's namespace, so that `docker stack rm` leaves them alone.
const (
	headPrefix     = "axion-h-"
	manifestPrefix = "axion-m-"
	// KeepOutcomes is how many commands' outcomes a head holds.
	KeepOutcomes = 10
	// KeepManifests is how many generations' manifests are kept.
	KeepManifests = 10
	// KeepCancelled is how many commands can be cancelled that have no outcome yet; the oldest cancellations are dropped.
	KeepCancelled = 64
	// MaxDetailBytes bounds what an outcome may say beside its status.
	MaxDetailBytes = 4 << 10
	// maxHeadBytes bounds a head's labels; Swarm refuses a raft message of 1.5 MiB.
	maxHeadBytes = 1 << 20
)

// The labels of services.
const (
	// LabelGeneration is "<generation>/<step>" of the last fenced write.
	LabelGeneration = "axion.generation"
	// LabelTombstone is on a service that is about to be removed, and will be.
	LabelTombstone = "axion.tombstone"
	// LabelRestart is the id of the command that restarted the service last, until the next deployment of its stack.
	LabelRestart   = "axion.restart"
	labelNamespace = "com.docker.stack.namespace"
)

// The labels of a head.
const (
	labelHead      = "axion.head" // the stack's name
	labelEpoch     = "axion.epoch"
	labelOwner     = "axion.owner"
	labelGroup     = "axion.group-generation"
	labelNonce     = "axion.nonce"
	labelAt        = LabelGeneration
	labelCommand   = "axion.command"
	labelManifest  = "axion.manifest"
	labelDigest    = "axion.manifest-digest"
	labelManifests = "axion.manifests"
	labelGood      = "axion.good"
	labelPhase     = "axion.phase"
	labelBase      = "axion.base"
	labelNext      = "axion.next"
	labelBefore    = "axion.before"
	labelPrevOK    = "axion.prevok"
	labelOutcomes  = "axion.outcomes"
	labelCancelled = "axion.cancelled"
	labelRest      = "axion.rest"
	labelBegun     = "axion.begun"
	labelSpent     = "axion.spent"
	labelRemoved   = "axion.removed"
	labelDead      = "axion.dead"
)

// Phase is how far the head's generation has come.
type Phase string

// The phases.
const (
	// Applying: its owner writes.
	Applying Phase = "applying"
	// Applied: all is written; its owner watches. Who takes over only watches.
	Applied Phase = "applied"
	// Decided: its command has an outcome.
	Decided Phase = "outcome"
)

// Statuses of an outcome that this package must know; any other is only kept.
const (
	// StatusSucceeded: the generation was applied in whole and converged.
	StatusSucceeded = "succeeded"
	// StatusCancelled: the head said that the command is to be stopped, at any point.
	StatusCancelled = "cancelled"
	// StatusExpired: nobody had begun the command when its deadline passed.
	StatusExpired = "expired"
)

// Outcome is how a command ended.
type Outcome struct {
	Command    string `json:"command"`
	Generation uint64 `json:"generation"`
	// Status is one lower-case word.
	Status string `json:"status"`
	// Detail is the caller's, at most MaxDetailBytes.
	Detail []byte `json:"detail,omitempty"`
}

// Head is what the Swarm knows of a stack's commands.
type Head struct {
	// Stack is the stack's name; the service's of a service without one.
	Stack string
	// Epoch counts the claims.
	Epoch uint64
	// Owner is the agent that claimed last.
	Owner string
	// GroupGeneration is the consumer group generation in which its command came.
	GroupGeneration int32
	// Nonce is of the last change: who finds its own knows that its change took effect.
	Nonce string
	// Generation and Step are what the owner works on, or worked on last. Both are 0 in a head that holds nothing but cancellations of commands to come.
	Generation uint64
	Step       uint32
	// Command is the id of the generation's command.
	Command string
	// Manifest is the name of the config that says what the generation is made of, ManifestDigest its SHA-256; the config is missing if it would be too large.
	Manifest, ManifestDigest string
	// Manifests are the names of the manifests that are kept, newest last.
	Manifests []string
	// Good is the manifest of the last generation that succeeded: it is kept however many failed since.
	Good  string
	Phase Phase
	// Base has, per service that belongs to the stack, the label under which a decided generation last wrote it; "" for one that was never written.
	Base map[string]string
	// Next is what Base will be; set in phase applied.
	Next map[string]string
	// Before is how the generation found the stack's services, before its first write; nil until then.
	Before map[string]string
	// PrevOK says that the generation before had succeeded and was at rest when this one was first claimed.
	PrevOK bool
	// Outcomes are the last commands' outcomes, newest last.
	Outcomes []Outcome
	// Cancelled are the ids of commands that are to end as cancelled and have no outcome yet, newest last.
	Cancelled []string
	// Begun is when the generation was first claimed, on its first owner's clock.
	Begun time.Time
	// Spent is how long its owners have worked on it, each on its own monotonic clock, as of the last change of the head.
	Spent time.Duration
	// Rest says that the generation was decided without a write, when the one before it was at rest: so the stack still is.
	Rest bool
	// Removed is when the stack was removed; zero if it was not. In a head at generation 0 it is when that was made.
	Removed time.Time
	// Dead marks a head that is about to be removed, and will be.
	Dead bool
}

// headName is the name of a stack's head.
func headName(stack string) string { return headPrefix + hashOf(stack)[:32] }

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Label is the label of services that this generation writes.
func (h Head) Label() string { return label(h.Generation, h.Step) }

func label(generation uint64, step uint32) string { return fmt.Sprintf("%d/%d", generation, step) }

// noGeneration is the place of a head that no command has claimed yet.
const noGeneration = "0/0"

// parseLabel returns 0 for what is no label of ours.
func parseLabel(s string) (generation uint64, step uint32) {
	g, rest, ok := strings.Cut(s, "/")
	generation, err := strconv.ParseUint(g, 10, 64)
	n, err2 := strconv.ParseUint(rest, 10, 32)
	if !ok || err != nil || err2 != nil {
		return 0, 0
	}
	return generation, uint32(n)
}

// outcome returns the recorded outcome of a command.
func (h Head) outcome(command string) (Outcome, bool) {
	for _, o := range slices.Backward(h.Outcomes) {
		if o.Command == command {
			return o, true
		}
	}
	return Outcome{}, false
}

// atRest says whether the head's generation succeeded, or left one that did as it was, and nothing has been begun since.
func (h Head) atRest() bool {
	o, ok := h.outcome(h.Command)
	return h.Phase == Decided && ok && o.Generation == h.Generation && (o.Status == StatusSucceeded || h.Rest)
}

// isCancelled says whether a command is to end as cancelled.
func (h Head) isCancelled(command string) bool { return slices.Contains(h.Cancelled, command) }

func (h Head) clone() Head {
	h.Manifests = slices.Clone(h.Manifests)
	h.Base, h.Next, h.Before = maps.Clone(h.Base), maps.Clone(h.Next), maps.Clone(h.Before)
	h.Outcomes, h.Cancelled = slices.Clone(h.Outcomes), slices.Clone(h.Cancelled)
	return h
}

// spec is the head as a config object.
func (h Head) spec() (swarm.ConfigSpec, error) {
	labels := map[string]string{
		labelHead: h.Stack, labelEpoch: strconv.FormatUint(h.Epoch, 10), labelOwner: h.Owner, labelGroup: strconv.FormatInt(int64(h.GroupGeneration), 10),
		labelNonce: h.Nonce, labelAt: h.Label(), labelCommand: h.Command, labelManifest: h.Manifest, labelDigest: h.ManifestDigest,
		labelGood: h.Good, labelPhase: string(h.Phase), labelPrevOK: strconv.FormatBool(h.PrevOK),
	}
	for name, m := range map[string]map[string]string{labelBase: h.Base, labelNext: h.Next, labelBefore: h.Before} {
		if m != nil {
			labels[name] = mustJSON(m)
		}
	}
	if len(h.Manifests) > 0 {
		labels[labelManifests] = mustJSON(h.Manifests)
	}
	if len(h.Outcomes) > 0 {
		labels[labelOutcomes] = mustJSON(h.Outcomes)
	}
	if len(h.Cancelled) > 0 {
		labels[labelCancelled] = mustJSON(h.Cancelled)
	}
	if h.Rest {
		labels[labelRest] = "true"
	}
	if !h.Removed.IsZero() {
		labels[labelRemoved] = h.Removed.UTC().Format(time.RFC3339)
	}
	if !h.Begun.IsZero() {
		labels[labelBegun] = h.Begun.UTC().Format(time.RFC3339Nano)
	}
	if h.Spent > 0 {
		labels[labelSpent] = h.Spent.String()
	}
	if h.Dead {
		labels[labelDead] = "true"
	}
	size := 0
	for k, v := range labels {
		size += len(k) + len(v)
	}
	if size > maxHeadBytes {
		return swarm.ConfigSpec{}, fmt.Errorf("the head of stack %s would take %d bytes, at most %d are allowed: it has too many services", h.Stack, size, maxHeadBytes)
	}
	return swarm.ConfigSpec{Annotations: swarm.Annotations{Name: headName(h.Stack), Labels: labels}, Data: []byte{'-'}}, nil
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // strings, numbers and maps of them: cannot happen
		panic(err)
	}
	return string(b)
}

// parseHead reads a config object that says it is a head.
func parseHead(spec swarm.ConfigSpec) (Head, error) {
	l := spec.Labels
	h := Head{
		Stack: l[labelHead], Owner: l[labelOwner], Nonce: l[labelNonce], Command: l[labelCommand], Manifest: l[labelManifest], ManifestDigest: l[labelDigest],
		Good: l[labelGood], Phase: Phase(l[labelPhase]), PrevOK: l[labelPrevOK] == "true", Dead: l[labelDead] == "true",
		Rest: l[labelRest] == "true",
	}
	if h.Stack == "" || spec.Name != headName(h.Stack) {
		return h, fmt.Errorf("config %s is no head: its name does not fit stack %q", spec.Name, h.Stack)
	}
	switch h.Phase {
	case Applying, Applied, Decided:
	default:
		return h, fmt.Errorf("the head of stack %s is in the unknown phase %q", h.Stack, h.Phase)
	}
	var err error
	if h.Epoch, err = strconv.ParseUint(l[labelEpoch], 10, 64); err != nil {
		return h, fmt.Errorf("the head of stack %s has the epoch %q", h.Stack, l[labelEpoch])
	}
	group, err := strconv.ParseInt(l[labelGroup], 10, 32)
	if err != nil {
		return h, fmt.Errorf("the head of stack %s has the group generation %q", h.Stack, l[labelGroup])
	}
	h.GroupGeneration = int32(group)
	if h.Generation, h.Step = parseLabel(l[labelAt]); h.Generation == 0 && (l[labelAt] != noGeneration || h.Phase != Decided || h.Command != "") {
		return h, fmt.Errorf("the head of stack %s has the generation %q", h.Stack, l[labelAt])
	}
	for name, to := range map[string]any{
		labelBase: &h.Base, labelNext: &h.Next, labelBefore: &h.Before, labelManifests: &h.Manifests, labelOutcomes: &h.Outcomes, labelCancelled: &h.Cancelled,
	} {
		if v, ok := l[name]; ok {
			if err := json.Unmarshal([]byte(v), to); err != nil {
				return h, fmt.Errorf("the head of stack %s has an unreadable label %s: %w", h.Stack, name, err)
			}
		}
	}
	for name, to := range map[string]*time.Time{labelRemoved: &h.Removed, labelBegun: &h.Begun} {
		if v := l[name]; v != "" {
			if *to, err = time.Parse(time.RFC3339Nano, v); err != nil {
				return h, fmt.Errorf("the head of stack %s has an unreadable label %s: %w", h.Stack, name, err)
			}
		}
	}
	if v := l[labelSpent]; v != "" {
		if h.Spent, err = time.ParseDuration(v); err != nil || h.Spent < 0 {
			return h, fmt.Errorf("the head of stack %s has the time spent %q", h.Stack, v)
		}
	}
	return h, nil
}
