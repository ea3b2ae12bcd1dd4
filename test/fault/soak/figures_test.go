package soak

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// sample is what one of the programs needed at rest, after so many commands.
type sample struct {
	commands float64
	// goroutines and heap (bytes that live, as the last garbage collection found them) are the agent's only: the plane tells neither.
	goroutines, heap float64
	// anonymous memory in bytes, and open files and sockets.
	anonymous, descriptors float64
}

// figure is one of a sample's figures, with the bounds that it must keep.
type figure struct {
	name string
	of   func(sample) float64
	// most is the absolute bound.
	most float64
	// unit is what the figure is divided by where it is printed.
	unit float64
	// grows bounds the growth over the second half of a phase, as the fitted line has it: a part of the value in the middle, and never less than slack, so that
	// the chance of a moment is no growth.
	grows, slack float64
}

const mb = 1 << 20

// agentFigures and planeFigures must keep these bounds. The absolute ones are about twice of what was seen at rest.
var (
	agentFigures = []figure{
		{name: "goroutines", of: func(s sample) float64 { return s.goroutines }, most: 250, unit: 1, grows: 0.05, slack: 5},
		{name: "descriptors", of: func(s sample) float64 { return s.descriptors }, most: 80, unit: 1, grows: 0.05, slack: 3},
		{name: "heap MB", of: func(s sample) float64 { return s.heap }, most: 40 * mb, unit: mb, grows: 0.10, slack: 1 * mb},
		{name: "anonymous MB", of: func(s sample) float64 { return s.anonymous }, most: 120 * mb, unit: mb, grows: 0.15, slack: 6 * mb},
	}
	planeFigures = []figure{
		{name: "descriptors", of: func(s sample) float64 { return s.descriptors }, most: 200, unit: 1, grows: 0.05, slack: 5},
		{name: "anonymous MB", of: func(s sample) float64 { return s.anonymous }, most: 400 * mb, unit: mb, grows: 0.20, slack: 10 * mb},
	}
)

// check returns what one series of samples shows, and what is wrong with it. Growth is judged over the second half only, and only if that has enough samples.
func (f figure) check(samples []sample) (seen string, wrong error) {
	last := f.of(samples[len(samples)-1])
	seen = fmt.Sprintf("%s %.1f", f.name, last/f.unit)
	for _, s := range samples {
		if v := f.of(s); v > f.most {
			return seen, fmt.Errorf("%s: %.1f after %.0f commands, at most %.1f are allowed", f.name, v/f.unit, s.commands, f.most/f.unit)
		}
	}
	half := samples[len(samples)/2:]
	if len(half) < minFit {
		return seen, nil
	}
	slope, middle := fit(half, f.of)
	growth := slope * (half[len(half)-1].commands - half[0].commands)
	seen += fmt.Sprintf(" (%+.1f over the last %d samples)", growth/f.unit, len(half))
	if growth > max(f.grows*middle, f.slack) {
		return seen, fmt.Errorf("%s grows: by %.1f from %.0f to %.0f commands, about %.1f in the middle",
			f.name, growth/f.unit, half[0].commands, half[len(half)-1].commands, middle/f.unit)
	}
	return seen, nil
}

// minFit is how many samples a line is worth being fitted to.
const minFit = 8

// fit is the line of least squares through the samples: its slope per command, and its value in the middle.
func fit(samples []sample, of func(sample) float64) (slope, middle float64) {
	var n, sumX, sumY, sumXX, sumXY float64
	for _, s := range samples {
		x, y := s.commands, of(s)
		n, sumX, sumY, sumXX, sumXY = n+1, sumX+x, sumY+y, sumXX+x*x, sumXY+x*y
	}
	if spread := n*sumXX - sumX*sumX; spread != 0 {
		slope = (n*sumXY - sumX*sumY) / spread
	}
	return slope, sumY / n
}

// measure takes a sample of each program. Nothing runs meanwhile.
func (w *world) measure(ctx context.Context, commands int) (agent, plane sample, err error) {
	a, err := w.agent.Figures()
	if err != nil {
		return agent, plane, fmt.Errorf("figures of the agent: %w", err)
	}
	p, err := w.plane.Figures()
	if err != nil {
		return agent, plane, fmt.Errorf("figures of the plane: %w", err)
	}
	told, err := w.metrics(ctx)
	if err != nil {
		return agent, plane, fmt.Errorf("the agent's metrics: %w", err)
	}
	agent = sample{
		commands: float64(commands), goroutines: told["go_goroutines"],
		// The collector starts the next time when the heap has doubled since it last looked.
		heap:      told["go_memstats_next_gc_bytes"] / 2,
		anonymous: float64(a.Anonymous), descriptors: float64(a.Descriptors),
	}
	return agent, sample{commands: float64(commands), anonymous: float64(p.Anonymous), descriptors: float64(p.Descriptors)}, nil
}

// metrics reads the agent's own metrics that have no labels.
func (w *world) metrics(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.health+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	told := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, text, ok := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); ok && err == nil {
			told[name] = value
		}
	}
	return told, lines.Err()
}
