package broker

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// written returns when the broker last wrote its topics, its rights and its users.
func (p *site) written(t *testing.T) map[string]time.Time {
	t.Helper()
	times := map[string]time.Time{}
	for _, name := range []string{"topics.json", "acls.json", usersFile} {
		info, err := os.Stat(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		times[name] = info.ModTime()
	}
	return times
}

// A plane that starts again gives its agents what they have: that must cost no write.
func TestWhatIsThereIsNotWrittenAgain(t *testing.T) {
	p := newSite(t)
	b, stop := p.start(t)
	give := func(b *Broker, manager bool) {
		provision(t, b, "a-one")
		if err := b.AllowClusterTopic(t.Context(), cluster, "a-one", manager); err != nil {
			t.Fatal(err)
		}
	}
	give(b, true)
	stop()
	b, _ = p.start(t)
	before := p.written(t)
	give(b, true)
	if after := p.written(t); !maps.Equal(before, after) {
		t.Errorf("written again: %v, %v", before, after)
	}
	// What is missing comes back, and what is taken away goes.
	topic := CommandTopic("a-one")
	if err := b.removeTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	give(b, false)
	give(b, false)
	if held, known := b.held(t.Context(), b.principal("a-one"), append(agentRights("a-one"), clusterRights(cluster)...)); !known || len(held) != len(agentRights("a-one")) {
		t.Errorf("it has the rights %v", held)
	}
	if topics, err := b.admin.ListTopics(t.Context(), topic); err != nil || !topics.Has(topic) {
		t.Errorf("the topic is missing: %v", err)
	}
	value := "1000"
	if _, err := b.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &value}}, topic); err != nil {
		t.Fatal(err)
	}
	give(b, false)
	if described, err := b.admin.DescribeTopicConfigs(t.Context(), topic); err != nil || b.hasTopic(t.Context(), topic, map[string]string{"max.message.bytes": value}) {
		t.Errorf("the topic's limit is not put right: %v %v", described, err)
	}
}
