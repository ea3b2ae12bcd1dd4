package bundle

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"

	"github.com/docker/cli/pkg/kvfile"

	"github.com/axion/runner-agent/proto/failure"
)

// stdinName is the name of a compose file that came from standard input.
const stdinName = "-"

// GatherOptions say what to gather, and from where.
type GatherOptions struct {
	// ComposeFiles are paths, relative to WorkingDir, in the order in which they are merged; "-" is Stdin.
	ComposeFiles []string
	// EnvFiles hold variables as `docker run --env-file` reads them; a later file wins over an earlier one, the environment over all.
	EnvFiles []string
	// Stdin is read if a compose file is "-".
	Stdin io.Reader
	// LookupEnv is the sender's environment, usually os.LookupEnv; nil means none.
	LookupEnv func(string) (string, bool)
	// WorkingDir is where relative paths of the options start; absolute.
	WorkingDir string
	// Home is the sender's home directory; it goes along only if a volume's source starts with "~".
	Home string
	// MaxBytes bounds all files together; 0 means DefaultMaxBytes.
	MaxBytes int64
}

// Gather reads the compose files and every file that they refer to, and the variables that they name: no other file and no other variable is in the
// content that it returns. What docker/cli would refuse is refused in its own words, as Load would do it.
func Gather(o GatherOptions) (Content, error) {
	if len(o.ComposeFiles) == 0 {
		return Content{}, refused("no compose file was given")
	}
	if len(o.ComposeFiles) > MaxComposeFiles {
		return Content{}, refused("%d compose files were given, at most %d are allowed", len(o.ComposeFiles), MaxComposeFiles)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	g := &gatherer{options: o, files: map[string][]byte{}}
	if err := g.readEnvFiles(); err != nil {
		return Content{}, err
	}
	return g.gather()
}

type gatherer struct {
	options GatherOptions
	env     map[string]string // from EnvFiles
	files   map[string][]byte // by cleaned path
	bytes   int64
}

func (g *gatherer) gather() (Content, error) {
	content := Content{WorkingDir: g.workingDir()}
	var composeFiles []File
	for _, name := range g.options.ComposeFiles {
		p := path.Clean(absolute(g.options.WorkingDir, name))
		body, err := g.composeFile(name, p)
		if err != nil {
			return Content{}, err
		}
		composeFiles = append(composeFiles, File{Path: p, Content: body})
		content.ComposeFiles = append(content.ComposeFiles, p)
	}
	r := &reader{workingDir: content.WorkingDir, home: g.options.Home, open: g.open, lookup: g.lookup}
	config, _, err := r.config(composeFiles)
	if err != nil {
		return Content{}, err
	}
	err = eachFile(config, content.WorkingDir, func(p string, _ func(string)) error {
		_, err := g.open(p)
		return err
	})
	if err != nil {
		return Content{}, err
	}
	if r.usesHome {
		content.Home = g.options.Home
	}
	content.Variables = r.environment
	for p, body := range g.files {
		content.Files = append(content.Files, File{Path: p, Content: body})
	}
	sort.Slice(content.Files, func(i, j int) bool { return content.Files[i].Path < content.Files[j].Path })
	return content, content.Validate()
}

// workingDir is the folder of the first compose file, or where the sender stands if that came from standard input.
func (g *gatherer) workingDir() string {
	first := g.options.ComposeFiles[0]
	if first == stdinName {
		return path.Clean(g.options.WorkingDir)
	}
	return path.Dir(path.Clean(absolute(g.options.WorkingDir, first)))
}

func (g *gatherer) composeFile(name, p string) ([]byte, error) {
	if name != stdinName {
		return g.open(p)
	}
	if body, ok := g.files[p]; ok {
		return body, nil
	}
	if g.options.Stdin == nil {
		return nil, refused("there is no standard input to read the compose file from")
	}
	return g.keep(p, "standard input", g.options.Stdin)
}

// open reads a file by its path as docker would; the content is kept under the cleaned path.
func (g *gatherer) open(p string) ([]byte, error) {
	key := path.Clean(p)
	if body, ok := g.files[key]; ok {
		return body, nil
	}
	if err := sameFile(p, key); err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, failure.New(failure.Invalid, "unreadable_file", p, "%w", err)
	}
	defer func() { _ = f.Close() }()
	return g.keep(key, p, f)
}

// sameFile refuses a path that means one file to the operating system and another one when it is cleaned: it goes through a link and then up.
func sameFile(p, cleaned string) error {
	if p == cleaned {
		return nil
	}
	a, err := os.Stat(p)
	if err != nil {
		return failure.New(failure.Invalid, "unreadable_file", p, "%w", err)
	}
	if b, err := os.Stat(cleaned); err != nil || !os.SameFile(a, b) {
		return refused("the path %s goes up from a link; name the file by %s or by the link's target", p, cleaned)
	}
	return nil
}

func (g *gatherer) keep(key, name string, from io.Reader) ([]byte, error) {
	left := g.options.MaxBytes - g.bytes
	body, err := io.ReadAll(io.LimitReader(from, left+1))
	if err != nil {
		return nil, failure.New(failure.Invalid, "unreadable_file", name, "%w", err)
	}
	if int64(len(body)) > left {
		return nil, failure.New(failure.Invalid, "bundle_too_large", name, "with %s the files of the stack are larger than %d bytes", name, g.options.MaxBytes).
			WithHint("bring large files to the nodes by an image or a volume")
	}
	if len(g.files) == MaxFiles {
		return nil, failure.New(failure.Invalid, "bundle_too_large", name, "the stack refers to more than %d files", MaxFiles)
	}
	g.bytes += int64(len(body))
	g.files[key] = body
	return body, nil
}

// readEnvFiles reads the sender's variable files. A bare name takes its value from the environment, as it does in `docker run --env-file`.
func (g *gatherer) readEnvFiles() error {
	g.env = map[string]string{}
	for _, name := range g.options.EnvFiles {
		p := absolute(g.options.WorkingDir, name)
		body, err := os.ReadFile(p)
		if err != nil {
			return failure.New(failure.Invalid, "unreadable_file", p, "%w", err)
		}
		lines, err := kvfile.ParseFromReader(bytes.NewReader(body), g.lookupEnv)
		if err != nil {
			return failure.New(failure.Invalid, "bad_env_file", p, "%w", fmt.Errorf("invalid env file (%s): %w", name, err))
		}
		for _, line := range lines {
			key, value, _ := strings.Cut(line, "=")
			g.env[key] = value
		}
	}
	return nil
}

func (g *gatherer) lookupEnv(name string) (string, bool) {
	if g.options.LookupEnv == nil {
		return "", false
	}
	return g.options.LookupEnv(name)
}

func (g *gatherer) lookup(name string) (string, bool) {
	if value, ok := g.lookupEnv(name); ok {
		return value, true
	}
	value, ok := g.env[name]
	return value, ok
}
