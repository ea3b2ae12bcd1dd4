package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSocketPath is the longest path that the kernel takes as a Unix socket's address, in bytes (sun_path of unix(7), with its end).
const maxSocketPath = 107

// maxBrokers bounds kafka.brokers, as the contract bounds those of the enrolment.
const maxBrokers = 16

func absolutePath(value string) string {
	if !filepath.IsAbs(value) {
		return "must be an absolute path"
	}
	return ""
}

func socketPath(value string) string {
	if len(value) > maxSocketPath {
		return fmt.Sprintf("must have at most %d bytes, as the kernel asks of a socket's path", maxSocketPath)
	}
	return absolutePath(value)
}

func hostPort(value string) string {
	host, port, err := net.SplitHostPort(value)
	if err != nil || host == "" || !isPort(port, 1) {
		return "must be HOST:PORT"
	}
	return ""
}

// listenAddress is like hostPort, but takes "all interfaces" and "any free port" too.
func listenAddress(value string) string {
	if _, port, err := net.SplitHostPort(value); err != nil || !isPort(port, 0) {
		return "must be HOST:PORT"
	}
	return ""
}

func isPort(s string, least uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= least
}

func engineHost(value string) string {
	for _, scheme := range []string{"unix://", "tcp://", "npipe://"} {
		if rest, ok := strings.CutPrefix(value, scheme); ok && rest != "" {
			return ""
		}
	}
	return "must begin with unix://, tcp:// or npipe:// and name an address"
}

func atMost(n int) func(string) string {
	return func(value string) string {
		if len(value) > n {
			return fmt.Sprintf("must have at most %d bytes", n)
		}
		return ""
	}
}

// checkTogether finds what is wrong between keys.
func checkTogether(c *Config) Problems {
	var ps Problems
	if n := len(c.Kafka.Brokers); n > maxBrokers {
		ps = append(ps, Problem{Where: c.Origin("kafka.brokers"), Key: "kafka.brokers", Text: fmt.Sprintf("names %d brokers, at most %d are allowed", n, maxBrokers)})
	}
	sasl := map[string]string{
		"kafka.sasl_mechanism":     c.Kafka.SASLMechanism,
		"kafka.sasl_username":      c.Kafka.SASLUsername,
		"kafka.sasl_password_file": c.Kafka.SASLPasswordFile,
	}
	set := 0
	for _, v := range sasl {
		if v != "" {
			set++
		}
	}
	if set == 0 {
		return ps
	}
	for _, k := range keys { // in the table's order
		if v, ok := sasl[k.path()]; ok && v == "" {
			ps = append(ps, Problem{Key: k.path(), Text: "is missing: kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password_file go together"})
		}
	}
	return ps
}
