package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/axion/runner-agent/plane"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// maxFile bounds the files that flags name, in bytes.
const maxFile = 1 << 20

// serveOptions are the flags of serve.
type serveOptions struct {
	environ []string

	config       plane.Config
	mechanism    string
	username     string
	passwordFile string
	caFile       string
	acls         string
	keepBundles  bool
	level        string
	format       string
}

// register binds the flags. The root command serves too, so it happens twice; only one of the two sets is ever parsed.
func (o *serveOptions) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.config.Listen, "listen", plane.DefaultListen, "`host:port` for agents and operators")
	flags.StringSliceVar(&o.config.Advertise, "advertise", nil, "host `name` or IP address by which others reach this plane; it stands in the certificate; repeatable")
	flags.StringVar(&o.config.KafkaListen, "kafka-listen", plane.DefaultKafkaListen, "`host:port` of the embedded Kafka broker")
	flags.StringSliceVar(&o.config.KafkaBrokers, "kafka-brokers", nil, "`host:port` of a Kafka to use in place of the embedded broker; repeatable")
	flags.StringVar(&o.mechanism, "kafka-sasl-mechanism", "", "`name` of the plane's SASL mechanism there: plain, scram-sha-256 or scram-sha-512")
	flags.StringVar(&o.username, "kafka-sasl-username", "", "the plane's user `name` there")
	flags.StringVar(&o.passwordFile, "kafka-sasl-password-file", "", "`file` with the plane's password there (or "+passwordEnv+")")
	flags.BoolVar(&o.config.KafkaAgentSCRAM, "kafka-agent-scram", false, "make SCRAM credentials there for each agent, instead of knowing agents by their certificates")
	flags.StringVar(&o.acls, "kafka-acls", "on", "`on|off`: off leaves access rights there to you, for a Kafka whose administrator the plane is not; every agent can read what you do not forbid")
	flags.StringVar(&o.caFile, "kafka-ca", "", "`file` with the CA certificates of those brokers; without it, this plane's own CA")
	flags.BoolVar(&o.config.KafkaPlaintext, "kafka-plaintext", false, "speak to those brokers without TLS: for development on one machine only")
	flags.BoolVar(&o.keepBundles, "keep-last-bundles", true, "keep what was deployed last of each stack, secret files and credentials included, to deploy it again when a Swarm comes back from a backup")
	flags.DurationVar(&o.config.CertificateLife, "certificate-life", 0, "how long agents' certificates are valid (default 720h)")
	flags.DurationVar(&o.config.HeartbeatInterval, "heartbeat-interval", 0, "how often agents are heard of (default 5s)")
	flags.StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&o.format, "log-format", "text", "text or json")
}

func serve(cmd *cobra.Command, data string, o *serveOptions) error {
	log, err := newLogger(cmd.ErrOrStderr(), o.level, o.format)
	if err != nil {
		return usageError{err}
	}
	cfg, err := o.planeConfig(data)
	if err != nil {
		return usageError{err}
	}
	p, err := plane.New(cfg, log, time.Now)
	if err != nil {
		return usageError{err}
	}
	return p.Run(cmd.Context())
}

func (o *serveOptions) planeConfig(data string) (plane.Config, error) {
	cfg := o.config
	cfg.DataDir = data
	cfg.ForgetBundles = !o.keepBundles
	if o.caFile != "" {
		pem, err := readFile("kafka-ca", o.caFile)
		if err != nil {
			return cfg, err
		}
		cfg.KafkaCAPEM = pem
	}
	switch o.acls {
	case "on":
	case "off":
		cfg.KafkaNoACLs = true
	default:
		return cfg, fmt.Errorf("kafka-acls: %q is not on or off", o.acls)
	}
	var err error
	cfg.KafkaSASL, err = o.sasl()
	return cfg, err
}

func (o *serveOptions) sasl() (*runnerv1.SaslCredentials, error) {
	if o.mechanism == "" {
		if o.username != "" || o.passwordFile != "" {
			return nil, errors.New("kafka-sasl-mechanism is missing")
		}
		return nil, nil
	}
	mechanism, ok := map[string]runnerv1.SaslMechanism{
		"plain":         runnerv1.SaslMechanism_SASL_MECHANISM_PLAIN,
		"scram-sha-256": runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256,
		"scram-sha-512": runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512,
	}[strings.ToLower(o.mechanism)]
	if !ok {
		return nil, fmt.Errorf("kafka-sasl-mechanism: %q is not known: plain, scram-sha-256 or scram-sha-512 is needed", o.mechanism)
	}
	password, err := o.password()
	if err != nil {
		return nil, err
	}
	return &runnerv1.SaslCredentials{Mechanism: mechanism, Username: o.username, Password: password}, nil
}

func (o *serveOptions) password() (string, error) {
	if o.passwordFile != "" {
		text, err := readFile("kafka-sasl-password-file", o.passwordFile)
		return strings.TrimRight(string(text), "\r\n"), err
	}
	for _, entry := range o.environ {
		if value, ok := strings.CutPrefix(entry, passwordEnv+"="); ok {
			return value, nil
		}
	}
	return "", nil
}

func readFile(flag, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %s is larger than %d bytes", flag, path, maxFile)
	}
	return text, nil
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level: %q is not debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("log-format: %q is not text or json", format)
	}
}
