package config

import (
	"strings"
	"time"
)

// key declares one setting.
type key struct {
	section, name string
	// target returns a pointer to the setting's place; its type is the setting's type: *string, *[]string, *bool, *int, *time.Duration or *Size.
	target func(*Config) any
	// def is the default, as it would be written in the environment; empty means none.
	def string
	// example stands in the example file if there is no default.
	example string
	// doc says what the setting does, in a sentence or two.
	doc string
	// min and max bound numbers, durations (in nanoseconds) and sizes (in bytes); both 0 means no bounds.
	min, max int64
	// choices are the only values of a string; empty means any.
	choices []string
	// check returns what is wrong with a value, or "".
	check    func(string) string
	required bool
	// secret values are never printed.
	secret bool
}

// path is the key's name in messages, for example "plane.address".
func (k key) path() string { return k.section + "." + k.name }

// variable is the key's environment variable, for example "AXION_PLANE_ADDRESS".
func (k key) variable() string {
	return variablePrefix + strings.ToUpper(k.section+"_"+k.name)
}

// flag is the key's flag without dashes, for example "plane-address".
func (k key) flag() string { return strings.ReplaceAll(k.section+"-"+k.name, "_", "-") }

const kib, mib = 1 << 10, 1 << 20

// sections explains the sections, in the order in which they are printed.
var sections = []struct{ name, doc string }{
	{"agent", "The process itself."},
	{"plane", "The control plane that the agent belongs to."},
	{"engine", "The Docker engine of this node."},
	{"kafka", "How commands and events travel. Enrolment brings brokers and credentials; set them here only for brokers that the control plane does not manage."},
	{"commands", "Commands that come by Kafka."},
	{"stack", "How stacks are deployed."},
	{"health", "The HTTP server with /livez, /readyz, /health and /metrics."},
	{"local", "The Unix socket for the agent's own command line and for a desktop client on this host."},
	{"telemetry", "CPU, memory, disk and network figures of the host and its containers."},
}

// keys declares every setting, section by section. To add one, add its field to Config, a line here, and run the tests with -update.
var keys = []key{
	{
		section: "agent", name: "state_dir", target: func(c *Config) any { return &c.Agent.StateDir }, def: "/var/lib/axion", check: absolutePath,
		doc: "Folder for key, certificate, journal and outbox; it must outlive the container.",
	},
	{
		section: "agent", name: "work_dir", target: func(c *Config) any { return &c.Agent.WorkDir }, def: "/run/axion-work", check: absolutePath,
		doc: "Private folder on a tmpfs; what a deployment brings along, secrets too, is unpacked there.",
	},
	{
		section: "agent", name: "log_level", target: func(c *Config) any { return &c.Agent.LogLevel }, def: "info", choices: []string{"debug", "info", "warn", "error"},
		doc: "Least severity that is logged.",
	},
	{
		section: "agent", name: "log_format", target: func(c *Config) any { return &c.Agent.LogFormat }, def: "json", choices: []string{"json", "text"},
		doc: "Form of the log lines on standard error.",
	},
	{
		section: "plane", name: "address", target: func(c *Config) any { return &c.Plane.Address }, example: "plane.example.com:9443", check: hostPort, required: true,
		doc: "Address of the control plane.",
	},
	{
		section: "plane", name: "token_file", target: func(c *Config) any { return &c.Plane.TokenFile }, def: "/run/secrets/axion_token", check: absolutePath,
		doc: "File with the join token; only read while the agent has no identity.",
	},
	{
		section: "engine", name: "host", target: func(c *Config) any { return &c.Engine.Host }, def: "unix:///var/run/docker.sock", check: engineHost,
		doc: "Address of the engine, as DOCKER_HOST would have it.",
	},
	{
		section: "kafka", name: "brokers", target: func(c *Config) any { return &c.Kafka.Brokers }, example: "kafka-1.example.com:9093,kafka-2.example.com:9093", check: hostPort,
		doc: "Brokers instead of those that enrolment named; at most 16.",
	},
	{
		section: "kafka", name: "sasl_mechanism", target: func(c *Config) any { return &c.Kafka.SASLMechanism }, example: "scram-sha-512", choices: []string{"plain", "scram-sha-256", "scram-sha-512"},
		doc: "SASL mechanism of managed brokers; needs user name and password file.",
	},
	{
		section: "kafka", name: "sasl_username", target: func(c *Config) any { return &c.Kafka.SASLUsername }, example: "axion-agent", check: atMost(255),
		doc: "SASL user name.",
	},
	{
		section: "kafka", name: "sasl_password_file", target: func(c *Config) any { return &c.Kafka.SASLPasswordFile }, example: "/run/secrets/axion_kafka_password", check: absolutePath,
		doc: "File with the SASL password.",
	},
	{
		section: "kafka", name: "max_message_bytes", target: func(c *Config) any { return &c.Kafka.MaxMessageBytes }, def: "8MiB", min: 64 * kib, max: 12 * mib,
		doc: "Largest command that is read; a larger one is refused with an event.",
	},
	{
		section: "commands", name: "max_concurrent", target: func(c *Config) any { return &c.Commands.MaxConcurrent }, def: "4", min: 1, max: 64,
		doc: "How many commands run at once; those of one stack always run one after the other.",
	},
	{
		section: "commands", name: "default_timeout", target: func(c *Config) any { return &c.Commands.DefaultTimeout }, def: "10m", min: int64(time.Second), max: int64(24 * time.Hour),
		doc: "How long a deployment may take to converge if it does not say so itself.",
	},
	{
		section: "stack", name: "skip_unchanged", target: func(c *Config) any { return &c.Stack.SkipUnchanged }, def: "true",
		doc: "Whether a deployment leaves services alone that are as they should be. With false each is written again, as docker stack deploy does it.",
	},
	{
		section: "health", name: "listen", target: func(c *Config) any { return &c.Health.Listen }, def: "127.0.0.1:9180", check: listenAddress,
		doc: "Address to listen on. It is answered without authentication: keep it on loopback or behind a firewall.",
	},
	{
		section: "local", name: "socket", target: func(c *Config) any { return &c.Local.Socket }, def: "/run/axion/agent.sock", check: socketPath,
		doc: "Path of the socket; its folder is made if it does not exist.",
	},
	{
		section: "local", name: "group", target: func(c *Config) any { return &c.Local.Group }, example: "docker", check: atMost(64),
		doc: "Group, by name or number, whose members may open the socket.",
	},
	{
		section: "telemetry", name: "enabled", target: func(c *Config) any { return &c.Telemetry.Enabled }, def: "true",
		doc: "Whether figures are collected and sent.",
	},
	{
		section: "telemetry", name: "interval", target: func(c *Config) any { return &c.Telemetry.Interval }, def: "10s", min: int64(time.Second), max: int64(5 * time.Minute),
		doc: "Time between two samples, until the control plane asks for another.",
	},
	{
		section: "telemetry", name: "cgroup_root", target: func(c *Config) any { return &c.Telemetry.CgroupRoot }, def: "/host/sys/fs/cgroup", check: absolutePath,
		doc: "Where the host's /sys/fs/cgroup is mounted; /sys/fs/cgroup serves if it is not.",
	},
	{
		section: "telemetry", name: "proc_root", target: func(c *Config) any { return &c.Telemetry.ProcRoot }, def: "/host/proc", check: absolutePath,
		doc: "Where the host's /proc is mounted; /proc serves if it is not.",
	},
}

// find returns the key with that path.
func find(path string) (key, bool) {
	for _, k := range keys {
		if k.path() == path {
			return k, true
		}
	}
	return key{}, false
}
