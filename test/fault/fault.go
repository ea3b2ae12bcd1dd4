// Package fault is what the fault tests share. The tests themselves are in the folders below it, one for each way of breaking things:
//
//	crash     an agent is killed at each step of a command's life, with redelivery, duplicates and reordering
//	held      requests to the engine are held back and land later, when another manager has gone on
//	cluster   nodes, engines, leaders, links and disks of a real Swarm of several nodes fail (test/rig)
//	kafka     brokers, topics and offsets fail, on the embedded broker and on a real Apache Kafka
//	fleet     a thousand agents and more at one plane
//	soak      thousands of deployments with faults at random
//
// Each test says what was broken, what had to hold, and the figure that was seen: Report collects these lines, and `make fault` prints them as a table. The tests run
// in a short form unless AXION_FAULT=long is set (`make fault-long`).
package fault

import (
	"encoding/json"
	"os"
	"sync"
	"testing"
)

const (
	// modeEnv chooses the form of the tests.
	modeEnv = "AXION_FAULT"
	// reportEnv names a file to which each line of the table is appended, as a JSON object.
	reportEnv = "AXION_FAULT_REPORT"
)

// Long says whether the whole of each test is wanted, and not its short form.
func Long() bool { return os.Getenv(modeEnv) == "long" }

// NeedLong skips a test that has no short form.
func NeedLong(t testing.TB) {
	t.Helper()
	if !Long() {
		t.Skip("this takes long: set " + modeEnv + "=long, or run make fault-long")
	}
}

// Line is one line of the table.
type Line struct {
	Test string `json:"test"`
	// Fault is what was broken, MustHold what had to hold, Seen the figure.
	Fault    string `json:"fault"`
	MustHold string `json:"must_hold"`
	Seen     string `json:"seen"`
	OK       bool   `json:"ok"`
}

var reporting sync.Mutex

// Report tells what a test saw, in its log and in the table. Call it when all has been checked: the line says whether the test has failed by then.
func Report(t testing.TB, broken, mustHold, seen string) {
	t.Helper()
	t.Logf("fault: %s | must hold: %s | seen: %s", broken, mustHold, seen)
	path := os.Getenv(reportEnv)
	if path == "" {
		return
	}
	line, err := json.Marshal(Line{Test: t.Name(), Fault: broken, MustHold: mustHold, Seen: seen, OK: !t.Failed()})
	if err != nil {
		t.Errorf("report: %v", err)
		return
	}
	reporting.Lock()
	defer reporting.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	if f != nil {
		if closed := f.Close(); err == nil {
			err = closed
		}
	}
	if err != nil {
		t.Errorf("report: %v", err)
	}
}
