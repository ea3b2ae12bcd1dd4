package telemetry

import "github.com/prometheus/client_golang/prometheus"

// What a figure can be about.
const (
	targetHost      = "host"
	targetContainer = "container"
	targetEngine    = "engine"
)

// stats are the collector's figures about itself.
type stats struct {
	errors     *prometheus.CounterVec
	samples    prometheus.Counter
	containers prometheus.Gauge
}

func newStats() *stats {
	s := &stats{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "axion_agent_telemetry_errors_total", Help: "Figures that could not be read, by what they are about.",
		}, []string{"target"}),
		samples: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "axion_agent_telemetry_samples_total", Help: "Samples taken.",
		}),
		containers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "axion_agent_telemetry_containers", Help: "Containers that are measured.",
		}),
	}
	for _, target := range []string{targetHost, targetContainer, targetEngine} {
		s.errors.WithLabelValues(target) // there from the start, so that a rate can be taken
	}
	return s
}

func (s *stats) failed(target string) { s.errors.WithLabelValues(target).Inc() }
func (s *stats) sampled()             { s.samples.Inc() }
func (s *stats) measuring(n int)      { s.containers.Set(float64(n)) }

// Describe sends what the collector tells about itself.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	c.stats.errors.Describe(out)
	c.stats.samples.Describe(out)
	c.stats.containers.Describe(out)
}

// Collect sends the collector's figures about itself.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	c.stats.errors.Collect(out)
	c.stats.samples.Collect(out)
	c.stats.containers.Collect(out)
}

var _ prometheus.Collector = (*Collector)(nil)
