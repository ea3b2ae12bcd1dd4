package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	interp "github.com/docker/cli/cli/compose/interpolation"
	"github.com/docker/cli/cli/compose/loader"
	"github.com/docker/cli/cli/compose/schema"
	"github.com/docker/cli/cli/compose/template"
	composetypes "github.com/docker/cli/cli/compose/types"
	"github.com/docker/cli/pkg/kvfile"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// codeInvalid is the failure code of what docker/cli refuses.
	codeInvalid = "invalid_compose"

	// maxExpandedBytes bounds what variables may add to the compose files: a few long variables that are named often would fill the memory.
	maxExpandedBytes = 8 << 20
	// maxReadBytes bounds the files that the compose files refer to, each counted as often as it is named.
	maxReadBytes = 64 << 20
	// maxPorts bounds the published ports of a stack; docker/cli makes one object for each port of a range.
	maxPorts = 1 << 16
)

// reader turns compose files into docker/cli's Config. Where files and variables come from is the caller's choice.
type reader struct {
	workingDir string
	// home replaces "~"; may be empty.
	home string
	// open returns the content of a file by its absolute path.
	open func(path string) ([]byte, error)
	// lookup returns a variable's value.
	lookup func(name string) (string, bool)
	// place stores a resolved env_file, which the sender knows by p, and returns where the loader finds it; nil drops the env_files.
	place func(p string, content []byte) (string, error)

	environment map[string]string // the variables that the files name and that exist
	usesHome    bool
	placed      map[string]string // resolved env_files by the name in the compose file
	expanded    int
	read        int
	ports       int
	missing     error // the first file that could not be read; told if the loader finds nothing wrong
	limit       error // the first bound that was passed
}

// config loads and merges the compose files. Their order counts.
func (r *reader) config(composeFiles []File) (*composetypes.Config, []string, error) {
	r.environment, r.placed = map[string]string{}, map[string]string{}
	details := composetypes.ConfigDetails{WorkingDir: r.workingDir}
	var dicts []map[string]any
	size := 0
	for _, f := range composeFiles {
		if size += len(f.Content); size > MaxComposeBytes {
			return nil, nil, refused("the compose files are larger than %d bytes together", MaxComposeBytes)
		}
		dict, err := parse(f.Content)
		if err != nil {
			return nil, nil, err
		}
		dicts = append(dicts, dict)
		details.ConfigFiles = append(details.ConfigFiles, composetypes.ConfigFile{Filename: f.Path, Config: dict})
	}
	// The first file's version counts, as in docker stack deploy.
	details.Version = schema.Version(dicts[0])
	for _, dict := range dicts {
		r.resolve(dict)
	}
	if r.limit != nil {
		return nil, nil, r.limit
	}
	details.Environment = maps.Clone(r.environment)
	if _, ok := r.environment["HOME"]; !ok && r.usesHome && r.home != "" {
		details.Environment["HOME"] = r.home
	}
	config, warnings, err := load(details)
	if err != nil {
		return nil, nil, err
	}
	if r.missing != nil {
		return nil, nil, r.missing
	}
	return config, append(warnings, propertyWarnings(dicts)...), nil
}

// resolve finds what a compose file refers to, and puts resolved copies in the place of its env_files, so that the loader looks up no name in them. It
// works on an interpolated copy; a file that cannot be interpolated is left for the loader to refuse.
func (r *reader) resolve(dict map[string]any) {
	view, err := interp.Interpolate(dict, interp.Options{LookupValue: r.find, Substitute: template.Substitute})
	if err != nil {
		return
	}
	services, _ := view["services"].(map[string]any)
	originals, _ := dict["services"].(map[string]any)
	for _, name := range sortedKeys(services) {
		service, ok := services[name].(map[string]any)
		original, both := originals[name].(map[string]any)
		if !ok || !both {
			continue
		}
		r.lookUpNamed(service["environment"])
		r.countPorts(service["ports"])
		r.usesHome = r.usesHome || namesHome(service["volumes"])
		if value, has := service["env_file"]; has {
			if original["env_file"] = r.resolveEnvFiles(value); original["env_file"] == "" {
				delete(original, "env_file")
			}
		}
	}
}

// find looks a variable up, remembers that it was named, and counts what it adds.
func (r *reader) find(name string) (string, bool) {
	value, ok := r.lookup(name)
	if !ok {
		return "", false
	}
	if r.expanded += len(value); r.expanded > maxExpandedBytes {
		r.exceeded("the variables of the compose files expand to more than %d bytes", maxExpandedBytes)
		return "", false
	}
	r.environment[name] = value
	return value, true
}

func (r *reader) exceeded(format string, args ...any) {
	if r.limit == nil {
		r.limit = refused(format, args...)
	}
}

func (r *reader) unreadable(err error) {
	if r.missing == nil {
		r.missing = err
	}
}

// lookUpNamed looks up what a service's environment takes from the sender: names without a value and, as docker/cli does, names with an empty one.
func (r *reader) lookUpNamed(environment any) {
	switch entries := environment.(type) {
	case map[string]any:
		for name, value := range entries {
			if value == nil || value == "" {
				r.find(name)
			}
		}
	case []any:
		for _, entry := range entries {
			if text, ok := entry.(string); ok {
				r.lookUpIfEmpty(text)
			}
		}
	}
}

func (r *reader) lookUpIfEmpty(entry string) {
	if name, value, _ := strings.Cut(entry, "="); name != "" && value == "" {
		r.find(name)
	}
}

var portRange = regexp.MustCompile(`(\d+)-(\d+)`)

func (r *reader) countPorts(ports any) {
	entries, _ := ports.([]any)
	for _, entry := range entries {
		most := uint64(1)
		text, _ := entry.(string)
		for _, m := range portRange.FindAllStringSubmatch(text, -1) {
			low, _ := strconv.ParseUint(m[1], 10, 16)
			high, _ := strconv.ParseUint(m[2], 10, 16)
			if high > low {
				most = max(most, high-low+1)
			}
		}
		if r.ports += int(most); r.ports > maxPorts {
			r.exceeded("the compose files publish more than %d ports", maxPorts)
			return
		}
	}
}

func namesHome(volumes any) bool {
	entries, _ := volumes.([]any)
	for _, entry := range entries {
		source, _ := entry.(string)
		if long, ok := entry.(map[string]any); ok {
			source, _ = long["source"].(string)
		}
		if strings.HasPrefix(source, "~") {
			return true
		}
	}
	return false
}

// resolveEnvFiles returns what stands in the place of a service's env_file. A value that the schema forbids is left as it is.
func (r *reader) resolveEnvFiles(value any) any {
	switch v := value.(type) {
	case string:
		return r.resolveEnvFile(v)
	case []any:
		entries := make([]any, 0, len(v))
		for _, entry := range v {
			name, ok := entry.(string)
			if !ok {
				entries = append(entries, entry)
				continue
			}
			if p := r.resolveEnvFile(name); p != "" {
				entries = append(entries, p)
			}
		}
		return entries
	default:
		return value
	}
}

// resolveEnvFile reads an env_file and returns where the loader finds a copy in which no bare name is left: a name that has a value in the sender's
// environment becomes "NAME=", which the loader fills in from the variables, and any other is dropped. The same name gives the same copy.
func (r *reader) resolveEnvFile(name string) string {
	p := absolute(r.workingDir, name)
	content, err := r.open(p)
	if err != nil {
		r.unreadable(err)
	}
	r.count(len(content))
	if at, ok := r.placed[name]; ok || r.limit != nil {
		return at
	}
	lines, err := kvfile.ParseFromReader(bytes.NewReader(content), func(name string) (string, bool) {
		_, ok := r.find(name)
		return "", ok
	})
	if err != nil {
		r.unreadable(refused("invalid env file (%s): %s", p, withoutContent(err)))
	}
	for _, line := range lines {
		r.lookUpIfEmpty(line)
	}
	at := ""
	if r.place != nil {
		if at, err = r.place(p, envFile(lines)); err != nil {
			r.unreadable(err)
		}
	}
	// The loader interpolates the name once more.
	r.placed[name] = strings.ReplaceAll(at, "$", "$$")
	return r.placed[name]
}

// withoutContent is the sentence of an env_file's error up to where it repeats a line: that may hold a secret.
func withoutContent(err error) string {
	text := err.Error()
	for _, cut := range []string{"no variable name", "invalid utf8 bytes"} {
		if strings.HasPrefix(text, cut) {
			return cut
		}
	}
	return text
}

// envFile writes lines so that the parser gives back the very same: it takes one carriage return from each line and a byte order mark from the first.
func envFile(lines []string) []byte {
	var b bytes.Buffer
	b.WriteString("#\r\n")
	for _, line := range lines {
		b.WriteString(line)
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

func (r *reader) count(n int) {
	if r.read += n; r.read > maxReadBytes {
		r.exceeded("the compose files refer to more than %d bytes of files", maxReadBytes)
	}
}

// eachFile calls f for every config and secret that docker/cli would read from a file, in a fixed order, with the file's absolute path and a way to point
// it elsewhere.
func eachFile(config *composetypes.Config, workingDir string, f func(p string, point func(string)) error) error {
	for _, name := range sortedKeys(config.Secrets) {
		object := config.Secrets[name]
		if object.External.External || object.Driver != "" {
			continue
		}
		if err := f(absolute(workingDir, object.File), func(p string) { object.File = p }); err != nil {
			return err
		}
		config.Secrets[name] = object
	}
	for _, name := range sortedKeys(config.Configs) {
		object := config.Configs[name]
		if object.External.External {
			continue
		}
		if err := f(absolute(workingDir, object.File), func(p string) { object.File = p }); err != nil {
			return err
		}
		config.Configs[name] = object
	}
	return nil
}

// load runs docker/cli's loader and repeats the checks of its stack command (cli/command/stack/loader, which reads the process environment).
func load(details composetypes.ConfigDetails) (config *composetypes.Config, warnings []string, err error) {
	defer func() {
		if p := recover(); p != nil { // the loader asserts types that its schema does not always guarantee
			config, warnings, err = nil, nil, refused("the compose files cannot be read: %v", p)
		}
	}()
	warnings = captureLog(func() { config, err = loader.Load(details) })
	var forbidden *loader.ForbiddenPropertiesError
	switch {
	case errors.As(err, &forbidden):
		return nil, nil, refused("Compose file contains unsupported options:\n\n%s\n", describe(forbidden.Properties, "\n\n"))
	case err != nil:
		return nil, nil, refused("%w", err)
	}
	for _, service := range config.Services {
		if service.Image == "" {
			return nil, nil, refused("invalid image reference for service %s: no image specified", service.Name)
		}
		if _, err := reference.ParseAnyReference(service.Image); err != nil {
			return nil, nil, refused("invalid image reference for service %s: %w", service.Name, err)
		}
	}
	return config, warnings, nil
}

// propertyWarnings says, as docker stack deploy does, which properties have no effect in a Swarm.
func propertyWarnings(dicts []map[string]any) []string {
	var warnings []string
	if unsupported := loader.GetUnsupportedProperties(dicts...); len(unsupported) > 0 {
		warnings = append(warnings, "Ignoring unsupported options: "+strings.Join(unsupported, ", "))
	}
	if deprecated := loader.GetDeprecatedProperties(dicts...); len(deprecated) > 0 {
		warnings = append(warnings, "Ignoring deprecated options: "+describe(deprecated, "; "))
	}
	return warnings
}

func describe(properties map[string]string, separator string) string {
	texts := make([]string, 0, len(properties))
	for _, name := range sortedKeys(properties) {
		texts = append(texts, fmt.Sprintf("%s: %s", name, properties[name]))
	}
	return strings.Join(texts, separator)
}

// absolute is docker/cli's way to make a path absolute: an absolute one is taken as it is.
func absolute(workingDir, p string) string {
	if path.IsAbs(p) || filepath.IsAbs(p) {
		return p
	}
	return path.Join(workingDir, p)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

func refused(format string, args ...any) error {
	return failure.New(failure.Invalid, codeInvalid, "", format, args...)
}
