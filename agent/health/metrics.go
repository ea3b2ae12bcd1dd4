package health

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// maxScrapes is how many scrapes may run at once.
const maxScrapes = 2

// newRegistry returns a registry of the agent's own, so that what a library registers globally does not show up.
func newRegistry(cfg Config, warnings func() []*runnerv1.HealthWarning) *prometheus.Registry {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "axion_agent_build_info",
		Help:        "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": cfg.Version, "revision": cfg.Revision, "go_version": runtime.Version()},
	})
	info.Set(1)
	r := prometheus.NewRegistry()
	r.MustRegister(
		info,
		warningsCollector{warnings},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

func metricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, ErrorHandling: promhttp.ContinueOnError})
}

// warningsDesc describes the number of warnings by severity.
var warningsDesc = prometheus.NewDesc("axion_agent_health_warnings", "Warnings that are set now, by severity.", []string{"severity"}, nil)

// severities are the values of the label; each is always there, so that an alert need not care for absence.
var severities = []runnerv1.HealthSeverity{
	runnerv1.HealthSeverity_HEALTH_SEVERITY_LOW,
	runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM,
	runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH,
}

// warningsCollector counts the warnings at the time of the scrape.
type warningsCollector struct {
	warnings func() []*runnerv1.HealthWarning
}

// Describe sends the collector's one description.
func (c warningsCollector) Describe(out chan<- *prometheus.Desc) { out <- warningsDesc }

// Collect sends one gauge a severity.
func (c warningsCollector) Collect(out chan<- prometheus.Metric) {
	count := make(map[runnerv1.HealthSeverity]int, len(severities))
	for _, w := range c.warnings() {
		count[w.GetSeverity()]++
	}
	for _, s := range severities {
		out <- prometheus.MustNewConstMetric(warningsDesc, prometheus.GaugeValue, float64(count[s]), SeverityName(s))
	}
}
