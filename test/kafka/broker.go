package kafka

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// stopTimeout bounds an orderly shutdown; what has not ended then is killed.
const stopTimeout = 30 * time.Second

// logTailBytes is how much of a broker's log is shown after a failure.
const logTailBytes = 8 << 10

// java are the arguments of every Java process. The first compiler only and the simple collector: start-up costs a third, and nothing here runs for long.
var java = []string{"-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.showDateTime=true"}

// listener is one of a broker's listeners.
type listener int

const (
	certificates listener = iota
	sasl
	internal
	controller
)

// listeners are all of them.
var listeners = []listener{certificates, sasl, internal, controller}

// name is the listener's in server.properties.
func (l listener) name() string {
	return [...]string{"CERTIFICATES", "SASL", "INTERNAL", "CONTROLLER"}[l]
}

// Broker is one broker of a cluster, a process of its own. Its methods may not be called at the same time.
type Broker struct {
	cluster *Cluster
	id      int
	dir     string
	ports   []int // by listener; kept over restarts

	mu      sync.Mutex
	process *exec.Cmd     // nil before run
	exited  chan struct{} // closed when the process has ended
}

// freePorts returns ports of loopback that nobody listens on. They are below those that the system gives to outgoing connections: a broker that is away for a
// while must find its port free when it comes back.
func freePorts(n int) ([]int, error) {
	const first, last, tries = 15000, 30000, 1000
	var ports []int
	for range tries {
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(first+rand.IntN(last-first))))
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }() // all of them at the end, so that no port comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		if len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("no free ports")
}

const loopback = "127.0.0.1"

func (b *Broker) address(l listener) string {
	return net.JoinHostPort(loopback, strconv.Itoa(b.ports[l]))
}

// prepare writes configuration and keys, and formats the data folder.
func (b *Broker) prepare(clusterID string) error {
	if err := b.writeKeys(); err != nil {
		return err
	}
	if err := os.WriteFile(b.properties(), []byte(b.serverProperties()), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	format := exec.CommandContext(ctx, "java", b.arguments("kafka.tools.StorageTool", "format", "-t", clusterID, "-c", b.properties())...)
	format.SysProcAttr = withParent()
	if out, err := format.CombinedOutput(); err != nil {
		return fmt.Errorf("format the data of broker %d: %w\n%s", b.id, err, out)
	}
	return nil
}

func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }

func (b *Broker) arguments(main string, args ...string) []string {
	all := append([]string{}, java...)
	return append(append(all, "-cp", filepath.Join(b.cluster.jars, "*"), main), args...)
}

// run starts the process.
func (b *Broker) run() error {
	log, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has it
	cmd := exec.Command("java", b.arguments("kafka.Kafka", b.properties())...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = b.dir, log, log, withParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start broker %d: %w", b.id, err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.process, b.exited = cmd, exited
	return nil
}

// Stop ends the broker in order, as an operator would, and returns when its process has ended.
func (b *Broker) Stop() {
	b.cluster.tb.Helper()
	if !b.signal(syscall.SIGTERM, stopTimeout) {
		b.end()
		b.cluster.tb.Errorf("broker %d did not end within %s", b.id, stopTimeout)
	}
}

// Kill ends the broker as a crash would, and returns when its process has ended.
func (b *Broker) Kill() { b.end() }

// Pause stops the broker's process where it is: it keeps its connections and answers nothing. Resume lets it go on.
func (b *Broker) Pause() { b.signal(syscall.SIGSTOP, 0) }

// Resume ends what Pause began.
func (b *Broker) Resume() { b.signal(syscall.SIGCONT, 0) }

// Start starts the broker again, on its data and its addresses. It does not wait until the broker answers; Cluster.AwaitReady does.
func (b *Broker) Start() {
	b.cluster.tb.Helper()
	if !b.ended() {
		b.cluster.tb.Fatalf("broker %d is running", b.id)
	}
	if err := b.run(); err != nil {
		b.cluster.tb.Fatal(err)
	}
}

// end kills the process, if there is one, and waits for its end.
func (b *Broker) end() { b.signal(syscall.SIGKILL, stopTimeout) }

// signal sends a signal and reports whether the process has ended within the limit.
func (b *Broker) signal(s os.Signal, limit time.Duration) bool {
	b.mu.Lock()
	process, exited := b.process, b.exited
	b.mu.Unlock()
	if process == nil {
		return true
	}
	_ = process.Process.Signal(s) // fails only if it has ended
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-exited:
		return true
	case <-timer.C:
		return false
	}
}

func (b *Broker) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.process == nil {
		return true
	}
	select {
	case <-b.exited:
		return true
	default:
		return false
	}
}

func (b *Broker) logFile() string { return filepath.Join(b.dir, "log") }

func (b *Broker) logTail() []byte {
	text, err := os.ReadFile(b.logFile())
	if err != nil {
		return []byte(err.Error())
	}
	if len(text) > logTailBytes {
		text = text[len(text)-logTailBytes:]
		text = text[bytes.IndexByte(text, '\n')+1:]
	}
	return text
}

// Names of the files with keys and certificates, in the broker's folder.
const (
	ownKey     = "own.pem"     // key and certificate of the cluster's own CA
	ownTrust   = "own-ca.pem"  // that CA
	shownKey   = "shown.pem"   // key and certificate of the listener for certificates
	shownTrust = "clients.pem" // the CAs of its clients
)

func (b *Broker) writeKeys() error {
	own := b.cluster.ca.Server().Certificates[0]
	shown := own
	if issue := b.cluster.options.Certificate; issue != nil {
		var err error
		if shown, err = issue([]string{loopback}); err != nil {
			return err
		}
	}
	ownPEM, err := keyAndCertificates(own.PrivateKey, own.Certificate)
	if err != nil {
		return err
	}
	shownPEM, err := keyAndCertificates(shown.PrivateKey, shown.Certificate)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		ownKey: ownPEM, ownTrust: b.cluster.CAPEM(), shownKey: shownPEM,
		shownTrust: append(append([]byte{}, b.cluster.CAPEM()...), b.cluster.options.ClientCAs...),
	} {
		if err := os.WriteFile(filepath.Join(b.dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// keyAndCertificates is a key store as Kafka reads it: the key (PKCS #8), the certificate, those of its issuers.
func keyAndCertificates(key any, chain [][]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	store := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, certificate := range chain {
		store = append(store, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})...)
	}
	return store, nil
}
