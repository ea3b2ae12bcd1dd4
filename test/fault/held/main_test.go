package held

import (
	"flag"
	"os"
	"strconv"
	"testing"
)

// atOnce is how many cases run at once: they wait for the engine more than they work.
const atOnce = 6

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(atOnce)); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
