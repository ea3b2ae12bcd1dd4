package config

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// loadTOML sets what the file sets. Values come from go-toml's decoder, the line of each key from its parser.
func loadTOML(c *Config, file string, content []byte) Problems {
	f := tomlFile{name: filepath.Base(file)}
	var document map[string]any
	if err := toml.Unmarshal(content, &document); err != nil {
		return Problems{f.syntaxProblem(err)}
	}
	f.lines = keyLines(content)
	for section, value := range document {
		f.loadSection(c, section, value)
	}
	slices.SortStableFunc(f.problems, func(a, b located) int { return a.line - b.line })
	ps := make(Problems, len(f.problems))
	for i, p := range f.problems {
		ps[i] = p.Problem
	}
	return ps
}

// tomlFile is a file while it is read.
type tomlFile struct {
	name     string
	lines    map[string]int // by path
	problems []located
}

// located is a problem with its line, for sorting.
type located struct {
	Problem
	line int
}

func (f *tomlFile) loadSection(c *Config, section string, value any) {
	if !slices.ContainsFunc(sections, func(s struct{ name, doc string }) bool { return s.name == section }) {
		f.complain(section, section, "is neither a section nor a key of the agent's configuration")
		return
	}
	table, ok := value.(map[string]any)
	if !ok {
		f.complain(section, section, "must be a section, ["+section+"]")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		path := section + "." + name
		k, ok := find(path)
		if !ok {
			f.complain(path, path, "is not a key of the agent's configuration")
			continue
		}
		c.origins[path] = f.where(path)
		if text := k.setTOML(c, table[name]); text != "" {
			f.complain(path, path, text)
		}
	}
}

func (f *tomlFile) complain(path, key, text string) {
	f.problems = append(f.problems, located{Problem{Where: f.where(path), Key: key, Text: text}, f.lines[path]})
}

func (f *tomlFile) where(path string) string {
	return f.name + ":" + strconv.Itoa(f.lines[path])
}

func (f *tomlFile) syntaxProblem(err error) Problem {
	text := "is not TOML: " + strings.TrimPrefix(err.Error(), "toml: ")
	var decode *toml.DecodeError
	if !errors.As(err, &decode) {
		return Problem{Where: f.name, Text: text}
	}
	line, _ := decode.Position()
	return Problem{Where: f.name + ":" + strconv.Itoa(line), Text: text}
}

// keyLines returns the line of the first mention of each key and section of a document that is known to be TOML.
func keyLines(content []byte) map[string]int {
	lines := make(map[string]int)
	var p unstable.Parser
	p.Reset(content)
	var section []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			section = note(&p, lines, nil, e)
		case unstable.KeyValue:
			noteValue(&p, lines, section, e)
		}
	}
	return lines
}

// noteValue notes a key and, if its value is an inline table, the keys in it.
func noteValue(p *unstable.Parser, lines map[string]int, prefix []string, e *unstable.Node) {
	path := note(p, lines, prefix, e)
	if e.Value().Kind != unstable.InlineTable {
		return
	}
	for it := e.Value().Children(); it.Next(); {
		if it.Node().Kind == unstable.KeyValue {
			noteValue(p, lines, path, it.Node())
		}
	}
}

// note notes each step of a dotted key and returns the whole path.
func note(p *unstable.Parser, lines map[string]int, prefix []string, e *unstable.Node) []string {
	path := slices.Clone(prefix)
	for it := e.Key(); it.Next(); {
		path = append(path, string(it.Node().Data))
		joined := strings.Join(path, ".")
		if _, ok := lines[joined]; !ok {
			lines[joined] = p.Shape(it.Node().Raw).Start.Line
		}
	}
	return path
}
