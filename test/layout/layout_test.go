package layout

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/axion/runner-agent"

type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// packages lists this module's packages with their dependencies, as the go command sees them.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", "nomsgpack", "-deps=false", "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("only %d packages found", len(all))
	}
	return all
}

// TestPackageComments: a newcomer who opens a package reads first what the room is for.
func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		documented := len(p.GoFiles) == 0 // a folder of tests only
		for _, name := range p.GoFiles {
			if strings.HasSuffix(name, ".pb.go") {
				documented = true // its comments are in the .proto files
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || f.Doc != nil
		}
		if !documented {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// under reports whether path is one of those packages or below one.
func under(path string, roots ...string) bool {
	for _, r := range roots {
		if path == r || strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}

// layer says what the packages below some folders must not reach, directly or through others.
type layer struct {
	name   string
	of     []string
	except []string
	never  []string
	why    string
}

func own(paths ...string) []string {
	for i, p := range paths {
		paths[i] = module + "/" + p
	}
	return paths
}

func TestLayers(t *testing.T) {
	transport := append(own("proto/axion", "proto/envelope", "proto/failurepb"), "google.golang.org/grpc", "github.com/segmentio/kafka-go", "github.com/twmb/franz-go")
	layers := []layer{
		{"the stack engine is a library", own("stack", "images"), nil, append(own("agent", "plane", "ctl"), transport[:3]...), "stack/ and images/ know nothing of the contract and who speaks it"},
		{"the agent stands alone", own("agent", "cmd/axion-agent"), nil, own("plane", "ctl", "proto/axion/plane"), "an agent works with any plane that keeps the contract"},
		{"the plane is its command's", own("ctl", "cmd/axionctl"), nil, own("plane", "agent"), "axionctl speaks the operator API and nothing else"},
		{"the contract is the bottom", own("proto"), nil, own("agent", "plane", "ctl", "stack", "images"), "everything builds on it"},
	}
	direct := []layer{
		{"docker/cli has one user", own("agent", "plane", "ctl", "cmd", "images", "proto"), nil, []string{"github.com/docker/cli"}, "only stack/ imports docker/cli"},
		{"Docker has few users in the agent", own("agent"), own("agent/engine", "agent/telemetry", "agent/fence"), []string{"github.com/docker/docker"}, "writes to a stack go through the fence"},
		{"kafka-go has one user", own(""), own("agent/bus"), []string{"github.com/segmentio/kafka-go"}, "the client can be exchanged in one place"},
		{"no transport in the stack engine", own("stack", "images"), nil, transport, "they take a Docker client and return values"},
		{"tests stay in tests", own("agent", "plane", "ctl", "cmd", "stack", "images", "proto"), nil, own("test"), "shipped code needs no test code"},
	}
	for _, p := range packages(t) {
		for _, l := range layers {
			if under(p.ImportPath, l.of...) && !under(p.ImportPath, l.except...) {
				for _, d := range p.Deps {
					if under(d, l.never...) {
						t.Errorf("%s: %s depends on %s (%s)", l.name, p.ImportPath, d, l.why)
					}
				}
			}
		}
		for _, l := range direct {
			in := under(p.ImportPath, l.of...) || (len(l.of) == 1 && l.of[0] == module+"/")
			if in && !under(p.ImportPath, l.except...) {
				for _, d := range p.Imports {
					if under(d, l.never...) {
						t.Errorf("%s: %s imports %s (%s)", l.name, p.ImportPath, d, l.why)
					}
				}
			}
		}
	}
}
