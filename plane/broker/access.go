package broker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Topics that exist once.
const (
	// EventsTopic has one partition for good: the order of a cluster's events hangs on it.
	EventsTopic = "runner.events"
	// DLQTopic holds what could not be read.
	DLQTopic = "runner.commands.dlq"
)

const (
	commandBytes = 12 << 20
	// largeBytes is for events and for the dead letter queue, in which a command has its reason beside it.
	largeBytes = 16 << 20
	retention  = 7 * 24 * time.Hour
	// maxReplicas is what a cluster of brokers is asked for, if it has as many.
	maxReplicas = 3
	// scramIterations is the number that the embedded broker tells its clients, whatever a user was made with. The passwords have 256 random bits.
	scramIterations = 4096
	// organization is in the agents' certificates.
	organization = "axion"
)

// CommandTopic is the topic of the commands for an agent or a cluster.
func CommandTopic(id string) string { return "runner.commands." + id }

// CommandTopicID returns whose commands a topic carries: the id of an agent or a cluster, which may or may not exist. ok is false if it is no such topic.
func CommandTopicID(topic string) (id string, ok bool) {
	id, ok = strings.CutPrefix(topic, CommandTopic(""))
	return id, ok && ids.MatchString(id) && topic != DLQTopic
}

// IsAgentID tells an agent's id from a cluster's.
func IsAgentID(id string) bool { return strings.HasPrefix(id, agentPrefix) }

// Group is the consumer group of that topic.
func Group(id string) string { return "runner." + id }

// agentPrefix begins every agent's id and no cluster's.
const agentPrefix = "a-"

// ids are letters, digits and hyphens: a topic's name has no other meaning for them.
var ids = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// checkIDs keeps an agent from being named like a cluster or a cluster like the dead letter queue. Failures of class Invalid, code "bad_id".
func checkIDs(clusterID, agentID string) error {
	switch {
	case !ids.MatchString(clusterID) || IsAgentID(clusterID) || CommandTopic(clusterID) == DLQTopic:
		return failure.New(failure.Invalid, "bad_id", clusterID, "%q cannot be a cluster's id", clusterID)
	case !ids.MatchString(agentID) || !IsAgentID(agentID):
		return failure.New(failure.Invalid, "bad_id", agentID, "%q cannot be an agent's id", agentID)
	}
	return nil
}

// EnsureBase makes the topics that exist once.
func (b *Broker) EnsureBase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.wait(ctx); err != nil {
		return err
	}
	return errors.Join(b.ensureTopic(ctx, EventsTopic, largeBytes), b.ensureTopic(ctx, DLQTopic, largeBytes))
}

// Provision makes an agent's and its cluster's command topics, the agent's access rights and, where it needs them, its credentials. It may be repeated: nothing
// changes then but a lost piece coming back.
func (b *Broker) Provision(ctx context.Context, clusterID, agentID string) (*runnerv1.KafkaAccess, error) {
	if err := checkIDs(clusterID, agentID); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.wait(ctx); err != nil {
		return nil, err
	}
	for _, topic := range []string{CommandTopic(agentID), CommandTopic(clusterID)} {
		if err := b.ensureTopic(ctx, topic, commandBytes); err != nil {
			return nil, err
		}
	}
	credentials, err := b.ensureUser(ctx, agentID)
	if err != nil {
		return nil, err
	}
	if err := b.allow(ctx, b.principal(agentID), agentRights(agentID)); err != nil {
		return nil, fmt.Errorf("access rights of agent %s: %w", agentID, err)
	}
	return &runnerv1.KafkaAccess{
		Brokers:    b.Addresses(),
		AgentTopic: CommandTopic(agentID), AgentGroup: Group(agentID), ClusterTopic: CommandTopic(clusterID), ClusterGroup: Group(clusterID),
		EventsTopic: EventsTopic, DlqTopic: DLQTopic,
		Sasl: credentials, Tls: b.embedded != nil || b.cfg.ClientTLS != nil, CaPem: b.cfg.CAPEM,
	}, nil
}

// AllowClusterTopic lets an agent read its cluster's topic and hand commands on to it, or no longer.
func (b *Broker) AllowClusterTopic(ctx context.Context, clusterID, agentID string, allowed bool) error {
	if err := checkIDs(clusterID, agentID); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.wait(ctx); err != nil {
		return err
	}
	change := b.deny
	if allowed {
		change = b.allow
	}
	if err := change(ctx, b.principal(agentID), clusterRights(clusterID)); err != nil {
		return fmt.Errorf("access rights of agent %s to cluster %s: %w", agentID, clusterID, err)
	}
	return nil
}

// Remove takes everything away from an agent: first its rights, so that an open connection is of no use, then its credentials and connections, then its topic.
// It goes as far as it can and may be repeated.
func (b *Broker) Remove(ctx context.Context, clusterID, agentID string) error {
	if err := checkIDs(clusterID, agentID); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.wait(ctx); err != nil {
		return err
	}
	err := errors.Join(b.denyAll(ctx, b.principal(agentID)), b.removeUser(ctx, agentID))
	b.Disconnect(agentID)
	err = errors.Join(err, b.removeTopic(ctx, CommandTopic(agentID)))
	if err != nil {
		return fmt.Errorf("remove agent %s from kafka: %w", agentID, err)
	}
	// Its members may still be there until their session ends; then the group expires by itself.
	if resp, err := b.admin.DeleteGroup(ctx, Group(agentID)); err != nil || resp.Err != nil {
		b.log.Debug("the group stays until it expires", "group", Group(agentID), "reason", errors.Join(err, resp.Err))
	}
	return nil
}

// principal is whom the broker sees: the user, or the name in the certificate as RFC 2253 writes it.
func (b *Broker) principal(agentID string) string {
	if b.usesSCRAM() {
		return "User:" + agentID
	}
	return "User:CN=" + agentID + ",O=" + organization
}

func (b *Broker) usesSCRAM() bool { return b.embedded != nil || b.cfg.AgentSCRAM }

// right is one kind of access to one thing.
type right struct {
	topic, group string
	op           kadm.ACLOperation
}

// agentRights are what every agent needs. To write implies to see the topic, to read as well.
func agentRights(agentID string) []right {
	return []right{
		{topic: CommandTopic(agentID), op: kadm.OpRead},
		{group: Group(agentID), op: kadm.OpRead},
		{topic: EventsTopic, op: kadm.OpWrite},
		{topic: DLQTopic, op: kadm.OpWrite},
	}
}

// clusterRights are what an agent on a confirmed manager needs beside them: to read, and to hand on commands that came on its own topic.
func clusterRights(clusterID string) []right {
	return []right{
		{topic: CommandTopic(clusterID), op: kadm.OpRead},
		{topic: CommandTopic(clusterID), op: kadm.OpWrite},
		{group: Group(clusterID), op: kadm.OpRead},
	}
}

func (r right) acl(principal string) *kadm.ACLBuilder {
	acl := kadm.NewACLs().Allow(principal).AllowHosts("*").Operations(r.op).ResourcePatternType(kadm.ACLPatternLiteral)
	if r.topic != "" {
		return acl.Topics(r.topic)
	}
	return acl.Groups(r.group)
}

func (b *Broker) allow(ctx context.Context, principal string, rights []right) error {
	if b.cfg.NoACLs {
		return nil
	}
	held, _ := b.held(ctx, principal, rights)
	for _, r := range rights {
		if slices.Contains(held, r) {
			continue
		}
		results, err := b.admin.CreateACLs(ctx, r.acl(principal))
		for _, result := range results {
			err = errors.Join(err, result.Err)
		}
		if err := b.withoutAuthorizer(err); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) deny(ctx context.Context, principal string, rights []right) error {
	if held, known := b.held(ctx, principal, rights); known {
		rights = held
	}
	for _, r := range rights {
		if err := b.deleteACLs(ctx, r.acl(principal)); err != nil {
			return err
		}
	}
	return nil
}

func (b *Broker) denyAll(ctx context.Context, principal string) error {
	return b.deleteACLs(ctx, everyRight(principal))
}

// everyRight matches all that a principal was ever given.
func everyRight(principal string) *kadm.ACLBuilder {
	return kadm.NewACLs().AnyResource().Allow(principal).AllowHosts().Operations().ResourcePatternType(kadm.ACLPatternAny)
}

func (b *Broker) deleteACLs(ctx context.Context, filter *kadm.ACLBuilder) error {
	if b.cfg.NoACLs {
		return nil
	}
	results, err := b.admin.DeleteACLs(ctx, filter)
	for _, result := range results {
		err = errors.Join(err, result.Err)
		for _, deleted := range result.Deleted {
			err = errors.Join(err, deleted.Err)
		}
	}
	return b.withoutAuthorizer(err)
}

// withoutAuthorizer lets a Kafka pass that knows no access rights: everyone may do everything there. One that keeps the plane from setting them is another matter.
func (b *Broker) withoutAuthorizer(err error) error {
	if errors.Is(err, kerr.ClusterAuthorizationFailed) {
		return failure.New(failure.Denied, "acls_denied", "", "kafka does not let the plane change access rights: %w", err).
			WithHint("give the plane's user Alter on the cluster, or set the rights yourself and start the plane with --kafka-acls=off")
	}
	if !errors.Is(err, kerr.SecurityDisabled) {
		return err
	}
	b.noAuthorizer.Do(func() {
		b.log.Warn("kafka has no authorizer: every agent can read every other agent's commands; set authorizer.class.name on the brokers")
	})
	return nil
}

// ensureUser gives an agent its password.
func (b *Broker) ensureUser(ctx context.Context, agentID string) (*runnerv1.SaslCredentials, error) {
	if !b.usesSCRAM() {
		return nil, nil
	}
	secret := password(b.cfg.Secret, agentID)
	if !b.hasUser(ctx, agentID) {
		if err := b.setPassword(ctx, agentID, secret); err != nil {
			return nil, fmt.Errorf("credentials of agent %s: %w", agentID, err)
		}
	}
	return &runnerv1.SaslCredentials{Mechanism: runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512, Username: agentID, Password: secret}, nil
}

func (b *Broker) removeUser(ctx context.Context, agentID string) error {
	switch {
	case !b.usesSCRAM():
		return nil
	case b.embedded == nil:
		return b.lockUser(ctx, agentID)
	}
	results, err := b.admin.AlterUserSCRAMs(ctx, []kadm.DeleteSCRAM{{User: agentID, Mechanism: kadm.ScramSha512}}, nil)
	for _, result := range results {
		if !errors.Is(result.Err, kerr.ResourceNotFound) {
			err = errors.Join(err, result.Err)
		}
	}
	return err
}

// lockUser gives a user of a real Kafka a password that nobody knows. To delete it would be a danger to all others: a broker of Kafka up to 4.3 that starts
// again and comes upon the record of a deletion may forget every user of the mechanism, the plane's own included (org.apache.kafka.image.ScramDelta, apply).
func (b *Broker) lockUser(ctx context.Context, user string) error {
	secret := make([]byte, sha256.Size)
	_, _ = rand.Read(secret) // never fails
	return b.setPassword(ctx, user, password(secret, user))
}

func (b *Broker) setPassword(ctx context.Context, user, secret string) error {
	results, err := b.admin.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{
		{User: user, Mechanism: kadm.ScramSha512, Iterations: scramIterations, Password: secret},
	})
	for _, result := range results {
		err = errors.Join(err, result.Err)
	}
	return err
}

// ensureTopic makes a topic of one partition, or gives the one that exists its settings.
func (b *Broker) ensureTopic(ctx context.Context, name string, maxBytes int) error {
	meta, err := b.admin.BrokerMetadata(ctx)
	if err != nil {
		return fmt.Errorf("topic %s: kafka does not answer: %w", name, err)
	}
	replicas := min(maxReplicas, max(1, len(meta.Brokers)))
	settings := map[string]string{
		"max.message.bytes":   strconv.Itoa(maxBytes),
		"retention.ms":        strconv.FormatInt(retention.Milliseconds(), 10),
		"cleanup.policy":      "delete",
		"min.insync.replicas": strconv.Itoa(max(1, replicas-1)), // one broker may be away
	}
	if b.hasTopic(ctx, name, settings) {
		return nil
	}
	configs := map[string]*string{}
	for k, v := range settings {
		configs[k] = &v
	}
	_, err = b.admin.CreateTopic(ctx, 1, int16(replicas), configs, name)
	if errors.Is(err, kerr.TopicAlreadyExists) {
		return b.reviseTopic(ctx, name, settings)
	}
	if err != nil {
		return fmt.Errorf("make topic %s: %w", name, err)
	}
	b.log.Info("made a topic", "topic", name, "replicas", replicas)
	return nil
}

// revised are the settings that a topic which exists gets back.
var revised = []string{"max.message.bytes", "retention.ms"}

// reviseTopic brings back the settings on which the agents count. The replication of a topic that exists is its owner's business.
func (b *Broker) reviseTopic(ctx context.Context, name string, settings map[string]string) error {
	var alter []kadm.AlterConfig
	for _, k := range revised {
		v := settings[k]
		alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: k, Value: &v})
	}
	results, err := b.admin.AlterTopicConfigs(ctx, alter, name)
	for _, result := range results {
		err = errors.Join(err, result.Err)
	}
	if err != nil {
		b.log.Warn("cannot set the limits of a topic", "topic", name, "error", err)
	}
	topics, err := b.admin.ListTopics(ctx, name)
	if err != nil {
		return fmt.Errorf("topic %s: %w", name, err)
	}
	if n := len(topics[name].Partitions); n > 1 {
		b.log.Warn("a topic has several partitions: commands and events keep their order only within one", "topic", name, "partitions", n)
	}
	return nil
}

func (b *Broker) removeTopic(ctx context.Context, name string) error {
	resp, err := b.admin.DeleteTopic(ctx, name)
	if err == nil {
		err = resp.Err
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil
	}
	return err
}
