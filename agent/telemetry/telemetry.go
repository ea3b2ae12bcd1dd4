// Package telemetry measures the host and its containers: CPU, memory, disk and network, as cumulative counters and gauges from which the control plane
// derives rates. The figures come from the kernel's own files (cgroups and procfs), never from the engine's API: that is asked once when a container starts,
// for its name, its labels and its process, and otherwise only sends its events.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/docker/docker/client"
	"github.com/prometheus/procfs"
	"google.golang.org/protobuf/types/known/timestamppb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// minInterval and maxInterval bound the cadence that a plane may ask for.
	minInterval = time.Second
	maxInterval = 5 * time.Minute
	// ownCgroups and ownProc serve where the host's are not mounted for the agent.
	ownCgroups = "/sys/fs/cgroup"
	ownProc    = "/proc"
)

// Config says where to look and how often.
type Config struct {
	// CgroupRoot is the host's /sys/fs/cgroup; /sys/fs/cgroup is used if it does not exist.
	CgroupRoot string
	// ProcRoot is the host's /proc; /proc is used if it does not exist.
	ProcRoot string
	// Interval is the time between two samples until the plane asks for another; 1 s to 5 min.
	Interval time.Duration
}

// Deps are what a Collector needs from outside.
type Deps struct {
	// Engine returns a client for the node's engine; it is asked anew after each outage.
	Engine func() *client.Client
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Collector takes samples. Run keeps its list of containers, Stream sends samples; both may run at once.
type Collector struct {
	interval time.Duration
	log      *slog.Logger
	now      func() time.Time

	host       *host
	containers *containers
	stats      *stats
}

// New returns a Collector that has read nothing yet but what kind of cgroups the host has. Failures: conflict no_procfs, no_cgroups.
func New(cfg Config, deps Deps) (*Collector, error) {
	procRoot := existing(cfg.ProcRoot, ownProc)
	proc, err := procfs.NewFS(procRoot)
	if err != nil {
		return nil, failure.New(failure.Conflict, "no_procfs", procRoot, "no procfs at %s: %w", procRoot, err)
	}
	groups, err := openHierarchy(existing(cfg.CgroupRoot, ownCgroups), procRoot)
	if err != nil {
		return nil, err
	}
	c := &Collector{
		interval: min(max(cfg.Interval, minInterval), maxInterval),
		log:      deps.Log,
		now:      deps.Now,
		host:     &host{proc: proc, procRoot: procRoot},
		stats:    newStats(),
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.containers = newContainers(deps.Engine, groups, proc, deps.Log, c.stats)
	return c, nil
}

// Sources says what is read and where, for a person: "cgroup version 2 at /host/sys/fs/cgroup, processes at /host/proc".
func (c *Collector) Sources() string {
	return fmt.Sprintf("cgroup version %d at %s, processes at %s", c.containers.groups.version(), c.containers.groups.root, c.host.procRoot)
}

// existing returns path if there is such a folder, else the other one.
func existing(path, otherwise string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return filepath.Clean(path)
	}
	return otherwise
}

// Run follows the engine's containers until ctx ends; then it returns nil.
func (c *Collector) Run(ctx context.Context) error {
	return c.containers.run(ctx)
}

// Stream sends a sample at once and then one each interval, until ctx ends (it returns nil then) or send fails. A duration from cadence, kept within 1 s and 5 min,
// is the interval from then on. A sample that would be late is left out.
func (c *Collector) Stream(ctx context.Context, cadence <-chan time.Duration, send func(*runnerv1.MetricsBatch) error) error {
	interval := c.interval
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if ctx.Err() != nil {
			return nil
		}
		if err := send(c.Sample()); err != nil {
			return fmt.Errorf("send metrics: %w", err)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				waiting = false
			case d, ok := <-cadence:
				if !ok {
					cadence = nil
					continue
				}
				if d = min(max(d, minInterval), maxInterval); d != interval {
					interval = d
					tick.Reset(d)
				}
			}
		}
	}
}

// Sample reads the figures of now. What cannot be read is left out and counted.
func (c *Collector) Sample() *runnerv1.MetricsBatch {
	batch := &runnerv1.MetricsBatch{SampledAt: timestamppb.New(c.now())}
	hostSample, err := c.host.sample(c.now())
	if err != nil {
		c.failed(targetHost, "", err)
	}
	batch.Host = hostSample
	for _, k := range c.containers.list() {
		sample, err := k.sample()
		switch {
		case err == nil:
			batch.Containers = append(batch.Containers, sample)
		case isGone(err): // it has ended, and the engine's event is on its way
		default:
			c.failed(targetContainer, k.name, err)
		}
	}
	c.stats.sampled()
	return batch
}

// failed counts an error; it is logged for whoever looks for it, because it would come again with each sample.
func (c *Collector) failed(target, name string, err error) {
	c.stats.failed(target)
	c.log.Debug("figures left out", "target", target, "name", name, "error", err)
}

// isGone says whether err means that the process or its cgroup has ended.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ESRCH)
}
