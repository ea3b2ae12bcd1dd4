package operator

import (
	"context"
	"path"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/plane/ledger"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// Bounds of the contract; sizes in bytes.
const (
	defaultTimeToLive = 24 * time.Hour
	minTimeToLive     = time.Second
	maxTimeToLive     = 7 * 24 * time.Hour
	minTimeout        = time.Second
	maxTimeout        = 24 * time.Hour

	maxKey         = 128
	maxStack       = 63
	maxService     = 255
	maxReplicas    = 100_000
	maxPath        = 4 << 10
	maxCompose     = 32
	maxFiles       = 1000
	maxVariables   = 1000
	maxVariable    = 64 << 10
	maxCredentials = 64
	maxRecipients  = 64
)

// stackPattern is what can stand before "_service" in a name that Swarm takes (swarmkit, manager/controlapi/common.go).
var stackPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)

// SubmitCommand stores a command, which is then sent until it has an outcome.
func (s *Server) SubmitCommand(ctx context.Context, req *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
	n, err := s.newCommand(ctx, req)
	if err != nil {
		return nil, s.answer(ctx, "SubmitCommand", err)
	}
	c, existing, err := s.deps.Ledger.Submit(ctx, n)
	if err != nil {
		return nil, s.answer(ctx, "SubmitCommand", err)
	}
	s.deps.Log.Info("command taken", "command_id", c.ID, "correlation_id", c.CorrelationID, "type", c.Type, "subject", c.Subject, "cluster_id", c.ClusterID,
		"agent_id", c.AgentID, "generation", c.Generation, "existing", existing)
	return &planev1.SubmitCommandResponse{CommandId: c.ID, Generation: c.Generation, ClusterId: c.ClusterID, Existing: existing}, nil
}

func (s *Server) newCommand(ctx context.Context, req *planev1.SubmitCommandRequest) (ledger.NewCommand, error) {
	n := ledger.NewCommand{IdempotencyKey: req.GetIdempotencyKey(), CorrelationID: req.GetCorrelationId()}
	if err := checkKey("idempotency_key", n.IdempotencyKey); err != nil {
		return n, err
	}
	if err := checkKey("correlation_id", n.CorrelationID); err != nil {
		return n, err
	}
	var err error
	if n.TimeToLive, err = timeToLive(req.GetTimeToLive()); err != nil {
		return n, err
	}
	if n.Message, err = checkedCommand(req); err != nil {
		return n, err
	}
	switch {
	case req.GetClusterId() != "" && req.GetAgentId() != "":
		return n, invalid("two_targets", req.GetAgentId(), "the command names a cluster and an agent").WithHint("name only one of them")
	case req.GetAgentId() != "":
		n.AgentID = req.GetAgentId()
		n.ClusterID, err = s.agent(ctx, n.AgentID)
		n.Topic = s.cfg.CommandTopic(n.AgentID)
	default:
		n.ClusterID, err = s.cluster(ctx, req.GetClusterId())
		n.Topic = s.cfg.CommandTopic(n.ClusterID)
	}
	return n, err
}

// checkKey refuses what could not travel as a header.
func checkKey(field, value string) error {
	if len(value) > maxKey || !utf8.ValidString(value) {
		return invalid("bad_"+field, field, "%s has %d bytes, at most %d are allowed", field, len(value), maxKey)
	}
	for _, r := range value {
		if !unicode.IsPrint(r) {
			return invalid("bad_"+field, field, "%s holds a character that cannot be printed", field)
		}
	}
	return nil
}

func timeToLive(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return defaultTimeToLive, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < minTimeToLive || d.AsDuration() > maxTimeToLive {
		return 0, invalid("bad_time_to_live", "time_to_live", "time_to_live is %v, it must be from %v to %v", d.AsDuration(), minTimeToLive, maxTimeToLive)
	}
	return d.AsDuration(), nil
}

func checkTimeout(object string, d *durationpb.Duration) error {
	if d == nil {
		return nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < minTimeout || d.AsDuration() > maxTimeout {
		return invalid("bad_timeout", object, "the timeout for %s is %v, it must be from %v to %v", object, d.AsDuration(), minTimeout, maxTimeout)
	}
	return nil
}

// checkedCommand returns the command if it keeps the contract's bounds. What its files say is for the agent to judge.
func checkedCommand(req *planev1.SubmitCommandRequest) (proto.Message, error) {
	switch c := req.GetCommand().(type) {
	case *planev1.SubmitCommandRequest_StackDeploy:
		return c.StackDeploy, checkDeploy(c.StackDeploy)
	case *planev1.SubmitCommandRequest_StackRemove:
		if err := checkStack(c.StackRemove.GetStack()); err != nil {
			return nil, err
		}
		return c.StackRemove, checkTimeout(c.StackRemove.GetStack(), c.StackRemove.GetTimeout())
	case *planev1.SubmitCommandRequest_ServiceScale:
		return c.ServiceScale, checkScale(c.ServiceScale)
	case *planev1.SubmitCommandRequest_ServiceRestart:
		return c.ServiceRestart, checkService(c.ServiceRestart.GetService())
	default:
		return nil, invalid("no_command", "", "the request holds no command")
	}
}

func checkStack(name string) error {
	if len(name) > maxStack || !stackPattern.MatchString(name) {
		return invalid("bad_stack_name", shorten(name), "stack name %q is not one that docker takes: 1 to %d letters, digits, hyphens and underscores, beginning with a letter or digit",
			shorten(name), maxStack)
	}
	return nil
}

func checkService(name string) error {
	if name == "" || len(name) > maxService || checkKey("service", name[:min(len(name), maxKey)]) != nil || checkKey("service", name[min(len(name), maxKey):]) != nil {
		return invalid("bad_service_name", shorten(name), "service name %q has no, or more than %d, bytes, or characters that cannot be printed", shorten(name), maxService)
	}
	return nil
}

func checkScale(c *runnerv1.ServiceScale) error {
	name := c.GetService()
	if err := checkService(name); err != nil {
		return err
	}
	if c.GetReplicas() > maxReplicas {
		return invalid("bad_replicas", name, "service %s cannot have %d tasks, at most %d are allowed", name, c.GetReplicas(), maxReplicas)
	}
	return checkTimeout(name, c.GetTimeout())
}

func checkDeploy(c *runnerv1.StackDeploy) error {
	stack := c.GetStack()
	if err := checkStack(stack); err != nil {
		return err
	}
	if err := checkTimeout(stack, c.GetOptions().GetTimeout()); err != nil {
		return err
	}
	if size := proto.Size(c); size > envelope.DefaultMaxData {
		return invalid("too_large", stack, "the bundle of stack %s has %d bytes, at most %d are allowed", stack, size, envelope.DefaultMaxData).
			WithHint("send fewer or smaller files")
	}
	switch b := c.GetBundle().GetContent().(type) {
	case *runnerv1.Bundle_Plain:
		return checkBundle(stack, b.Plain)
	case *runnerv1.Bundle_Sealed:
		if n := len(b.Sealed.GetKeys()); n < 1 || n > maxRecipients {
			return invalid("bad_bundle", stack, "the bundle of stack %s is sealed to %d agents, 1 to %d are allowed", stack, n, maxRecipients)
		}
		return nil
	default:
		return invalid("no_bundle", stack, "the deployment of stack %s has no bundle", stack)
	}
}

func checkBundle(stack string, b *runnerv1.BundleContent) error {
	bad := func(format string, args ...any) error {
		return invalid("bad_bundle", stack, "the bundle of stack "+stack+": "+format, args...)
	}
	for _, count := range []struct {
		what            string
		have, low, high int
	}{
		{"compose files", len(b.GetComposeFiles()), 1, maxCompose},
		{"files", len(b.GetFiles()), 1, maxFiles},
		{"variables", len(b.GetVariables()), 0, maxVariables},
		{"registry credentials", len(b.GetRegistryCredentials()), 0, maxCredentials},
	} {
		if count.have < count.low || count.have > count.high {
			return bad("it has %d %s, %d to %d are allowed", count.have, count.what, count.low, count.high)
		}
	}
	if !cleanPath(b.GetWorkingDir()) || (b.GetHome() != "" && !cleanPath(b.GetHome())) {
		return bad("its working directory or home is no absolute, cleaned path")
	}
	files := make(map[string]bool, len(b.GetFiles()))
	for _, f := range b.GetFiles() {
		if !cleanPath(f.GetPath()) {
			return bad("%q is no absolute, cleaned path", shorten(f.GetPath()))
		}
		if files[f.GetPath()] {
			return bad("%s is in it twice", f.GetPath())
		}
		files[f.GetPath()] = true
	}
	for _, p := range b.GetComposeFiles() {
		if !files[p] {
			return bad("compose file %q is not in it", shorten(p))
		}
	}
	for name, value := range b.GetVariables() {
		if name == "" || len(name)+len(value) > maxVariable {
			return bad("variable %q has no name or more than %d bytes", shorten(name), maxVariable)
		}
	}
	return nil
}

func cleanPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && len(p) <= maxPath
}
