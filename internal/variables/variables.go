// Package variables knows which environment variables begin with AXION_PLANE_ and whose they are: the plane's own, one for each of its flags, and those of
// the agent's section [plane]. Each program refuses variables that it does not know, because they are misspelt ones; where both run in one environment (a
// development machine, one compose file) it must not take the other's for such.
package variables

import "slices"

// Plane returns the variables of axion-plane, sorted.
func Plane() []string {
	return []string{
		"AXION_PLANE_ADVERTISE",
		"AXION_PLANE_CERTIFICATE_LIFE",
		"AXION_PLANE_CLUSTER",
		"AXION_PLANE_DATA",
		"AXION_PLANE_HEARTBEAT_INTERVAL",
		"AXION_PLANE_KAFKA_ACLS",
		"AXION_PLANE_KAFKA_AGENT_SCRAM",
		"AXION_PLANE_KAFKA_BROKERS",
		"AXION_PLANE_KAFKA_CA",
		"AXION_PLANE_KAFKA_LISTEN",
		"AXION_PLANE_KAFKA_PLAINTEXT",
		"AXION_PLANE_KAFKA_SASL_MECHANISM",
		"AXION_PLANE_KAFKA_SASL_PASSWORD",
		"AXION_PLANE_KAFKA_SASL_PASSWORD_FILE",
		"AXION_PLANE_KAFKA_SASL_USERNAME",
		"AXION_PLANE_KEEP_LAST_BUNDLES",
		"AXION_PLANE_LISTEN",
		"AXION_PLANE_LOG_FORMAT",
		"AXION_PLANE_LOG_LEVEL",
		"AXION_PLANE_TTL",
		"AXION_PLANE_USES",
	}
}

// Agent returns the variables of axion-agent that begin as the plane's do, sorted.
func Agent() []string {
	return []string{
		"AXION_PLANE_ADDRESS",
		"AXION_PLANE_TOKEN_FILE",
	}
}

// OfPlane says whether a variable is axion-plane's.
func OfPlane(name string) bool { return slices.Contains(Plane(), name) }

// OfAgent says whether a variable that begins with AXION_PLANE_ is axion-agent's.
func OfAgent(name string) bool { return slices.Contains(Agent(), name) }
