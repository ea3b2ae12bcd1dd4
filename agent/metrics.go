package agent

import (
	"github.com/prometheus/client_golang/prometheus"
)

// figures are the agent's own metrics, read when somebody asks for them.
type figures struct {
	agent *Agent
	desc  map[string]*prometheus.Desc
}

func newFigures(a *Agent) *figures {
	f := &figures{agent: a, desc: map[string]*prometheus.Desc{}}
	for name, help := range map[string]string{
		"axion_agent_session_connected":                  "Whether the session with the control plane is open.",
		"axion_agent_session_attempts_total":             "Sessions tried since the process started.",
		"axion_agent_session_connects_total":             "Sessions opened since the process started.",
		"axion_agent_session_heartbeats_total":           "Heartbeats sent since the process started.",
		"axion_agent_session_heartbeat_seconds":          "Round-trip time of the newest answered heartbeat.",
		"axion_agent_commands_running":                   "Commands that run now.",
		"axion_agent_outbox_events":                      "Events that Kafka has not acknowledged yet.",
		"axion_agent_outbox_bytes":                       "Encoded size of the events that Kafka has not acknowledged yet.",
		"axion_agent_outbox_dropped_total":               "Progress events dropped because the outbox was full, since the process started.",
		"axion_agent_certificate_not_after_time_seconds": "End of the certificate's validity, as Unix time.",
	} {
		f.desc[name] = prometheus.NewDesc(name, help, nil, nil)
	}
	return f
}

// Describe implements prometheus.Collector.
func (f *figures) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range f.desc {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Before enrolment there is nothing to tell.
func (f *figures) Collect(ch chan<- prometheus.Metric) {
	o := f.agent.online.Load()
	if o == nil {
		return
	}
	tell := func(name string, kind prometheus.ValueType, value float64) {
		ch <- prometheus.MustNewConstMetric(f.desc[name], kind, value)
	}
	stats := o.session.Stats()
	connected := 0.0
	if o.session.Connected() {
		connected = 1
	}
	tell("axion_agent_session_connected", prometheus.GaugeValue, connected)
	tell("axion_agent_session_attempts_total", prometheus.CounterValue, float64(stats.Attempts))
	tell("axion_agent_session_connects_total", prometheus.CounterValue, float64(stats.Connects))
	tell("axion_agent_session_heartbeats_total", prometheus.CounterValue, float64(stats.HeartbeatsSent))
	tell("axion_agent_session_heartbeat_seconds", prometheus.GaugeValue, stats.RoundTrip.Seconds())
	tell("axion_agent_commands_running", prometheus.GaugeValue, float64(len(o.commands.Running())))
	tell("axion_agent_outbox_events", prometheus.GaugeValue, float64(o.journal.Len()))
	tell("axion_agent_outbox_bytes", prometheus.GaugeValue, float64(o.journal.Bytes()))
	tell("axion_agent_outbox_dropped_total", prometheus.CounterValue, float64(o.journal.Dropped()))
	tell("axion_agent_certificate_not_after_time_seconds", prometheus.GaugeValue, float64(f.agent.identity.NotAfter().Unix()))
}
