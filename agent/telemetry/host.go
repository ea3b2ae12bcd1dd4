package telemetry

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// hostInit is a process in the host's own network namespace: <proc>/net/dev would show the agent's.
	hostInit = 1
	// sectorBytes is the unit of /proc/diskstats, whatever the disk's own sectors are.
	sectorBytes = 512
	kibibyte    = 1 << 10
)

// host reads the node's own figures.
type host struct {
	proc     procfs.FS
	procRoot string
}

// sample returns what could be read, and what could not as an error.
func (h *host) sample(now time.Time) (*runnerv1.HostSample, error) {
	s := &runnerv1.HostSample{}
	return s, errors.Join(h.cpu(s, now), h.memory(s), h.load(s), h.network(s), h.disks(s))
}

func (h *host) cpu(s *runnerv1.HostSample, now time.Time) error {
	stat, err := h.proc.Stat()
	if err != nil {
		return fmt.Errorf("host cpu: %w", err)
	}
	t := stat.CPUTotal // guest time is a part of user time
	used := t.User + t.Nice + t.System + t.IRQ + t.SoftIRQ + t.Steal
	s.CpuUsageNanoseconds = uint64(used * float64(time.Second))
	s.Cpus = uint32(len(stat.CPU))
	s.Uptime = durationpb.New(now.Sub(time.Unix(int64(stat.BootTime), 0)).Truncate(time.Second))
	return nil
}

func (h *host) memory(s *runnerv1.HostSample) error {
	m, err := h.proc.Meminfo()
	if err != nil {
		return fmt.Errorf("host memory: %w", err)
	}
	if m.MemTotal == nil || m.MemAvailable == nil {
		return errors.New("host memory: meminfo has no total or no available memory")
	}
	s.MemoryTotalBytes = *m.MemTotal * kibibyte
	s.MemoryUsedBytes = (*m.MemTotal - min(*m.MemTotal, *m.MemAvailable)) * kibibyte
	return nil
}

func (h *host) load(s *runnerv1.HostSample) error {
	l, err := h.proc.LoadAvg()
	if err != nil {
		return fmt.Errorf("host load: %w", err)
	}
	s.Load1 = l.Load1
	return nil
}

// engineInterface matches the interfaces that the engine makes: whatever goes through them to the outside goes through a real one too.
var engineInterface = regexp.MustCompile(`^(lo|veth.*|docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

func (h *host) network(s *runnerv1.HostSample) error {
	p, err := h.proc.Proc(hostInit)
	if err != nil {
		return fmt.Errorf("host network: %w", err)
	}
	lines, err := p.NetDev()
	if err != nil {
		return fmt.Errorf("host network: %w", err)
	}
	for name, line := range lines {
		if !engineInterface.MatchString(name) {
			s.NetworkReceiveBytes += line.RxBytes
			s.NetworkTransmitBytes += line.TxBytes
		}
	}
	return nil
}

// notADisk matches block devices that are none, or that lie on others: their bytes are counted there.
var notADisk = regexp.MustCompile(`^(loop|ram|zram|sr|fd|dm-|md|nbd)\d*`)

// partition matches a partition and names its disk.
var partition = regexp.MustCompile(`^((?:sd|vd|hd|xvd)[a-z]+)\d+$|^((?:nvme\d+n|mmcblk)\d+)p\d+$`)

func (h *host) disks(s *runnerv1.HostSample) error {
	// The library wants a sysfs, which diskstats are not read from.
	block, err := blockdevice.NewFS(h.procRoot, h.procRoot)
	if err != nil {
		return fmt.Errorf("host disks: %w", err)
	}
	stats, err := block.ProcDiskstats()
	if err != nil {
		return fmt.Errorf("host disks: %w", err)
	}
	names := make(map[string]bool, len(stats))
	for _, d := range stats {
		names[d.DeviceName] = true
	}
	for _, d := range stats {
		if notADisk.MatchString(d.DeviceName) || names[diskOf(d.DeviceName)] {
			continue
		}
		s.DiskReadBytes += d.ReadSectors * sectorBytes
		s.DiskWriteBytes += d.WriteSectors * sectorBytes
	}
	return nil
}

// diskOf returns the disk that a partition is on, or "". (Some virtual machines have a partition without its disk.)
func diskOf(name string) string {
	m := partition.FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	return m[1] + m[2]
}
