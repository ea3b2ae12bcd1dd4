package broker

import (
	"context"
	"errors"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// At each start everything is given again to every agent. The embedded broker writes the file with all topics, all rights or all users for each of them, and syncs
// it, and it does one thing at a time: a thousand agents that come back would wait for that. So what it has already is left as it is. It answers with what holds
// now; a broker of a real Kafka may answer with what held a moment ago, so there everything is written.

// hasTopic says whether the embedded broker has a topic with these settings.
func (b *Broker) hasTopic(ctx context.Context, name string, settings map[string]string) bool {
	if b.embedded == nil {
		return false
	}
	described, err := b.admin.DescribeTopicConfigs(ctx, name)
	if err != nil || len(described) != 1 || described[0].Err != nil {
		return false
	}
	for _, key := range revised {
		if !slices.ContainsFunc(described[0].Configs, func(c kadm.Config) bool { return c.Key == key && c.MaybeValue() == settings[key] }) {
			return false
		}
	}
	return true
}

// hasUser says whether the embedded broker has that user's password. There is only one that it can be: users made with another secret are forgotten at the start.
func (b *Broker) hasUser(ctx context.Context, user string) bool {
	if b.embedded == nil {
		return false
	}
	described, err := b.admin.DescribeUserSCRAMs(ctx, user)
	return err == nil && described[user].Err == nil &&
		slices.Contains(described[user].CredInfos, kadm.CredInfo{Mechanism: kadm.ScramSha512, Iterations: scramIterations})
}

// held returns which of these rights a principal has on the embedded broker; ok is false if that is not known.
func (b *Broker) held(ctx context.Context, principal string, rights []right) (held []right, ok bool) {
	if b.embedded == nil {
		return nil, false
	}
	results, err := b.admin.DescribeACLs(ctx, everyRight(principal))
	for _, result := range results {
		err = errors.Join(err, result.Err)
		for _, a := range result.Described {
			r := right{op: a.Operation}
			switch a.Type {
			case kmsg.ACLResourceTypeTopic:
				r.topic = a.Name
			case kmsg.ACLResourceTypeGroup:
				r.group = a.Name
			}
			if slices.Contains(rights, r) {
				held = append(held, r)
			}
		}
	}
	return held, err == nil
}
