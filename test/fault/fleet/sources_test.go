package fleet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// containers is how many containers each simulated node tells of.
	containers = 10
	// stacks is how many stacks each simulated Swarm has.
	stacks = 5
)

// node is a simulated node: the i-th of the fleet; the first of each cluster is its manager.
type node int

func (n node) manager() bool { return n%clusterSize == 0 }

func (n node) facts() *runnerv1.NodeFacts {
	f := &runnerv1.NodeFacts{
		NodeId: fmt.Sprintf("node%021d", n), Hostname: fmt.Sprintf("host-%d", n), Role: runnerv1.NodeRole_NODE_ROLE_WORKER,
		Address: "10.0.0.1", EngineVersion: "28.5.2", Os: "linux", Architecture: "x86_64", Kernel: "6.1.0", Cpus: 4, MemoryBytes: 16 << 30,
	}
	if n.manager() {
		f.Role, f.SwarmClusterId = runnerv1.NodeRole_NODE_ROLE_MANAGER, fmt.Sprintf("swarm%020d", n)
	}
	return f
}

// swarm is what a manager knows of its Swarm's nodes; nil for a worker.
func (n node) swarm() *runnerv1.NodeList {
	if !n.manager() {
		return nil
	}
	list := &runnerv1.NodeList{SwarmClusterId: n.facts().GetSwarmClusterId()}
	for other := n; other < n+clusterSize; other++ {
		f := other.facts()
		list.Nodes = append(list.Nodes, &runnerv1.SwarmNode{
			NodeId: f.GetNodeId(), Hostname: f.GetHostname(), Role: f.GetRole(), Leader: other == n, State: "ready", Availability: "active",
		})
	}
	return list
}

func (n node) heartbeat() *runnerv1.Heartbeat {
	beat := &runnerv1.Heartbeat{Role: n.facts().GetRole(), EngineReachable: true}
	for i := range stacks {
		if n.manager() {
			beat.Stacks = append(beat.Stacks, &runnerv1.StackGeneration{Stack: fmt.Sprintf("stack-%d", i), Generation: 7, Epoch: 9})
		}
	}
	return beat
}

// Stream sends samples as telemetry does.
func (n node) Stream(ctx context.Context, cadence <-chan time.Duration, send func(*runnerv1.MetricsBatch) error) error {
	var every time.Duration
	select {
	case every = <-cadence:
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := send(n.samples()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n node) samples() *runnerv1.MetricsBatch {
	now := uint64(time.Now().UnixNano())
	batch := &runnerv1.MetricsBatch{
		SampledAt: timestamppb.Now(),
		Host: &runnerv1.HostSample{
			CpuUsageNanoseconds: now, Cpus: 4, MemoryUsedBytes: 8 << 30, MemoryTotalBytes: 16 << 30, Load1: 0.5,
			NetworkReceiveBytes: now, NetworkTransmitBytes: now, DiskReadBytes: now, DiskWriteBytes: now,
		},
	}
	for i := range containers {
		batch.Containers = append(batch.Containers, &runnerv1.ContainerSample{
			ContainerId: strings.Repeat("0123456789abcdef", 4), Name: fmt.Sprintf("stack-%d_web.1.%d", i%stacks, n), Stack: fmt.Sprintf("stack-%d", i%stacks),
			Service: fmt.Sprintf("stack-%d_web", i%stacks), TaskId: fmt.Sprintf("task%021d", i), EpochStartedAt: timestamppb.Now(),
			CpuUsageNanoseconds: now, MemoryUsageBytes: 64 << 20, MemoryWorkingSetBytes: 32 << 20, NetworkReceiveBytes: now, NetworkTransmitBytes: now, Pids: 12,
		})
	}
	return batch
}
