package bundle

import (
	"github.com/docker/cli/cli/compose/loader"
)

// Bounds of a parsed compose file. Real ones stay below 20 levels and a few thousand nodes; YAML's anchors can make a small file grow without them.
const (
	maxDepth     = 64
	maxNodes     = 100_000
	maxYAMLBytes = 8 << 20
)

// parse reads YAML as docker/cli does, and refuses what is too deep or grows too large by anchors.
func parse(content []byte) (map[string]any, error) {
	dict, err := loader.ParseYAML(content)
	if err != nil {
		return nil, refused("%w", err)
	}
	var s size
	s.add(dict, 1)
	switch {
	case s.depth > maxDepth:
		return nil, refused("the compose file is nested more than %d levels deep", maxDepth)
	case s.nodes > maxNodes:
		return nil, refused("the compose file has more than %d values", maxNodes)
	case s.bytes > maxYAMLBytes:
		return nil, refused("the compose file grows to more than %d bytes by its anchors", maxYAMLBytes)
	}
	return dict, nil
}

// size measures a value, and stops when a bound is passed.
type size struct{ depth, nodes, bytes int }

func (s *size) add(value any, depth int) {
	s.depth = max(s.depth, depth)
	s.nodes++
	if s.depth > maxDepth || s.nodes > maxNodes || s.bytes > maxYAMLBytes {
		return
	}
	switch v := value.(type) {
	case string:
		s.bytes += len(v)
	case map[string]any:
		for key, entry := range v {
			s.bytes += len(key)
			s.add(entry, depth+1)
		}
	case []any:
		for _, entry := range v {
			s.add(entry, depth+1)
		}
	}
}
