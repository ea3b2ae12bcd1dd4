// Command model searches the states of the deployment protocol for one that breaks a property.
//
//	go run ./test/model/cmd/model -scenario all -rebalances 1 -crashes 1
//	go run ./test/model/cmd/model -variant no-prevok -scenario back -rebalances 1 -crashes 1
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/axion/runner-agent/test/model"
)

func main() {
	variant := flag.String("variant", "protocol", "what is taken out of the protocol; list names them")
	scenario := flag.String("scenario", "all", "the history of commands; list names them")
	var f model.Faults
	budget := func(to *uint8, name, text string) {
		flag.Func(name, text+" (a number, default 0)", func(s string) error {
			_, err := fmt.Sscan(s, to)
			return err
		})
	}
	budget(&f.Rebalances, "rebalances", "how often the partition moves although its consumer lives")
	budget(&f.Crashes, "crashes", "how often a manager crashes")
	budget(&f.OffsetResets, "resets", "how often the committed offset is lost")
	budget(&f.Ambiguous, "ambiguous", "how often a write takes effect and is answered with an error")
	budget(&f.OldLists, "old-lists", "how often an engine answers with a list of some earlier time")
	budget(&f.Rollbacks, "rollbacks", "how often Swarm rolls a service back")
	budget(&f.Cuts, "cuts", "how often a command's time is over while it is written")
	budget(&f.Cancels, "cancels", "how often an operator cancels a command, as a step of its own; with 0 that is one with the step that finds it")
	noCancel := flag.Bool("no-cancel", false, "no command is cancelled")
	maxHeap := flag.Uint64("memory", 6<<10, "give up beyond this heap, in MiB")
	maxStates := flag.Int("states", 0, "give up beyond this many states; 0 = no bound")
	first := flag.Bool("first", false, "stop at the first broken property")
	traces := flag.Bool("traces", true, "print the shortest way to each broken property")
	flag.Parse()
	if err := run(*variant, *scenario, f, options{*noCancel, *maxHeap << 20, *maxStates, *first, *traces}); err != nil {
		fmt.Fprintln(os.Stderr, "model:", err)
		os.Exit(1)
	}
}
