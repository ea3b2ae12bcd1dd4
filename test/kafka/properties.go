package kafka

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// serverPrincipal is the name in the certificates that test CAs give to servers: the brokers among themselves.
const serverPrincipal = "User:CN=server"

// serverProperties is the broker's configuration. What a client could notice is left as Kafka has it, except for what a production cluster would set too.
func (b *Broker) serverProperties() string {
	c := b.cluster
	replicas := min(len(c.addresses(internal)), 3)
	p := map[string]string{
		"process.roles":                                      "broker,controller",
		"node.id":                                            fmt.Sprint(b.id),
		"controller.quorum.voters":                           voters(c.brokers),
		"controller.listener.names":                          controller.name(),
		"inter.broker.listener.name":                         internal.name(),
		"listeners":                                          b.urls(listeners...),
		"advertised.listeners":                               b.urls(certificates, sasl, internal),
		"listener.security.protocol.map":                     "CERTIFICATES:SSL,SASL:SASL_SSL,INTERNAL:SSL,CONTROLLER:SSL",
		"ssl.keystore.type":                                  "PEM",
		"ssl.truststore.type":                                "PEM",
		"ssl.keystore.location":                              b.path(ownKey),
		"ssl.truststore.location":                            b.path(ownTrust),
		"ssl.client.auth":                                    "required",
		"listener.name.sasl.ssl.client.auth":                 "none",
		"authorizer.class.name":                              "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":                                        strings.Join(c.superUsers(), ";"),
		"log.dirs":                                           b.path("data"),
		"broker.heartbeat.interval.ms":                       "500", // a broker comes and goes in steps of it; 2 s otherwise
		"auto.create.topics.enable":                          "false",
		"default.replication.factor":                         fmt.Sprint(replicas),
		"offsets.topic.replication.factor":                   fmt.Sprint(replicas),
		"offsets.topic.num.partitions":                       "4", // 50 only take longer to make
		"transaction.state.log.num.partitions":               "1",
		"transaction.state.log.replication.factor":           fmt.Sprint(replicas),
		"transaction.state.log.min.isr":                      "1",
		"num.network.threads":                                "2",
		"num.io.threads":                                     "4",
		"listener.name.sasl.sasl.enabled.mechanisms":         "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"listener.name.sasl.plain.sasl.jaas.config":          c.plainUsers(),
		"listener.name.sasl.scram-sha-256.sasl.jaas.config":  "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.sasl.scram-sha-512.sasl.jaas.config":  "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.certificates.ssl.keystore.type":       "PEM",
		"listener.name.certificates.ssl.truststore.type":     "PEM",
		"listener.name.certificates.ssl.keystore.location":   b.path(shownKey),
		"listener.name.certificates.ssl.truststore.location": b.path(shownTrust),
		"listener.name.certificates.ssl.client.auth":         "required",
	}
	maps.Copy(p, c.options.Properties)
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&text, "%s=%s\n", key, strings.ReplaceAll(p[key], `\`, `\\`))
	}
	return text.String()
}

func (b *Broker) path(name string) string { return filepath.Join(b.dir, name) }

// urls lists listeners with the addresses that they listen on, which are those that clients are told.
func (b *Broker) urls(which ...listener) string {
	all := make([]string, len(which))
	for i, l := range which {
		all[i] = l.name() + "://" + b.address(l)
	}
	return strings.Join(all, ",")
}

func voters(brokers []*Broker) string {
	all := make([]string, len(brokers))
	for i, b := range brokers {
		all[i] = fmt.Sprintf("%d@%s", b.id, b.address(controller))
	}
	return strings.Join(all, ",")
}

func (c *Cluster) superUsers() []string {
	return append([]string{serverPrincipal, "User:CN=" + adminName + ",O=" + adminOrganization}, c.options.SuperUsers...)
}

func (c *Cluster) plainUsers() string {
	var text strings.Builder
	text.WriteString("org.apache.kafka.common.security.plain.PlainLoginModule required")
	for _, user := range slices.Sorted(maps.Keys(c.options.PlainUsers)) {
		fmt.Fprintf(&text, ` user_%s="%s"`, user, c.options.PlainUsers[user])
	}
	text.WriteString(";")
	return text.String()
}
