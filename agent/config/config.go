// Package config reads the agent's configuration: a TOML file, then the environment, then the command line, each stronger than the one before.
// One table (keys.go) declares every key with its type, default, bounds and words; parsing, the flags, the printed configuration and the example file are
// all made from it, so that none of them can know a key that the others do not.
//
// Whatever is wrong is refused, all of it at once, and each complaint says where: file, line and key, the variable, or the flag.
package config

import (
	"os"
	"time"
)

// Config is the agent's whole configuration; Load returns it complete and checked.
type Config struct {
	Agent     Agent
	Plane     Plane
	Engine    Engine
	Kafka     Kafka
	Commands  Commands
	Stack     Stack
	Health    Health
	Local     Local
	Telemetry Telemetry

	// origins says where each value that is not a default came from, by "section.key".
	origins map[string]string
}

// Agent is about the process itself.
type Agent struct {
	// StateDir holds key, certificate, journal and outbox.
	StateDir string
	// WorkDir is the private folder, in memory only, in which bundles are unpacked.
	WorkDir string
	// LogLevel is "debug", "info", "warn" or "error".
	LogLevel string
	// LogFormat is "json" or "text".
	LogFormat string
}

// Plane is about the control plane.
type Plane struct {
	// Address is "host:port".
	Address string
	// TokenFile holds the join token; it is read when the agent enrols.
	TokenFile string
}

// Engine is about the node's Docker engine.
type Engine struct {
	// Host is its address as docker writes it.
	Host string
}

// Kafka overrides what enrolment said about the brokers.
type Kafka struct {
	// Brokers are "host:port"; empty means those of the enrolment.
	Brokers []string
	// SASLMechanism is "plain", "scram-sha-256", "scram-sha-512", or empty for the credentials of the enrolment.
	SASLMechanism string
	// SASLUsername goes with SASLMechanism.
	SASLUsername string
	// SASLPasswordFile holds the password.
	SASLPasswordFile string
	// MaxMessageBytes is the largest message that is read.
	MaxMessageBytes Size
}

// Commands is about the commands that come by Kafka.
type Commands struct {
	// MaxConcurrent is how many run at once; 1 to 64.
	MaxConcurrent int
	// DefaultTimeout is how long a deployment may take that does not say so itself.
	DefaultTimeout time.Duration
}

// Stack is about how stacks are deployed.
type Stack struct {
	// SkipUnchanged leaves services unwritten that are as they should be, when that is safe.
	SkipUnchanged bool
}

// Health is about the health server.
type Health struct {
	// Listen is "host:port".
	Listen string
}

// Local is about the socket for the command line and the desktop client.
type Local struct {
	// Socket is the socket's path.
	Socket string
	// Group may open the socket, by name or number; empty leaves it to the process's own group.
	Group string
}

// Telemetry is about the figures of host and containers.
type Telemetry struct {
	// Enabled says whether samples are taken.
	Enabled bool
	// Interval is the time between two samples, until the plane asks for another.
	Interval time.Duration
	// CgroupRoot is where the host's /sys/fs/cgroup is to be seen.
	CgroupRoot string
	// ProcRoot is where the host's /proc is to be seen.
	ProcRoot string
}

// ClearEnvironment empties the process environment. Call it once the configuration is read: what is deployed later must never find a variable of the agent.
// (The kernel still shows the first environment in /proc/self/environ, which is why bundles may not name files outside themselves.)
func ClearEnvironment() { os.Clearenv() }
