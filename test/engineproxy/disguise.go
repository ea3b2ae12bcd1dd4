package engineproxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Node is a node of a Swarm by its id and its host name.
type Node struct{ ID, Name string }

// Pretend makes the engine look like that node: one of several managers of its Swarm, of which the others need not exist. The engine's own node stays in the
// list of nodes, because the tasks run there.
func (p *Proxy) Pretend(self Node, others ...Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.self, p.others = self, others
}

// Confine leaves out of the engine's lists of services and configs whatever does not bear a name, or a label with a value, that begins with prefix. Tests share a
// Swarm, and an agent looks after every stack that it finds there.
func (p *Proxy) Confine(prefix string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prefix = prefix
}

// The answers that are changed, whatever the version of the API.
var (
	infoPath  = regexp.MustCompile(`^(/v[0-9.]+)?/info$`)
	nodesPath = regexp.MustCompile(`^(/v[0-9.]+)?/nodes$`)
	listPath  = regexp.MustCompile(`^(/v[0-9.]+)?/(services|configs)$`)
)

// disguise changes an answer of the engine on its way.
func (p *Proxy) disguise(r *http.Response) error {
	p.mu.Lock()
	self, others, prefix := p.self, p.others, p.prefix
	p.mu.Unlock()
	path := r.Request.URL.Path
	if r.Request.Method != http.MethodGet || r.StatusCode != http.StatusOK {
		return nil
	}
	switch {
	case self.ID != "" && infoPath.MatchString(path):
		return change(r, func(info map[string]any) (map[string]any, error) {
			swarm, ok := info["Swarm"].(map[string]any)
			if !ok {
				return nil, fmt.Errorf("engineproxy: /info says nothing of a swarm")
			}
			info["Name"], swarm["NodeID"] = self.Name, self.ID
			return info, nil
		})
	case self.ID != "" && nodesPath.MatchString(path):
		return change(r, func(nodes []map[string]any) ([]map[string]any, error) {
			return pretended(nodes, append([]Node{self}, others...))
		})
	case prefix != "" && listPath.MatchString(path):
		return change(r, func(all []listed) ([]listed, error) {
			return slices.DeleteFunc(all, func(o listed) bool { return !o.begins(prefix) }), nil
		})
	}
	return nil
}

// pretended adds those nodes, made after the first, which is the engine's own on a Swarm of one.
func pretended(nodes []map[string]any, want []Node) ([]map[string]any, error) {
	if len(nodes) == 0 {
		return nil, fmt.Errorf("engineproxy: the swarm has no nodes")
	}
	all := nodes
	for _, n := range want {
		node := maps.Clone(nodes[0])
		node["ID"] = n.ID
		if d, ok := node["Description"].(map[string]any); ok {
			d = maps.Clone(d)
			d["Hostname"] = n.Name
			node["Description"] = d
		}
		if m, ok := node["ManagerStatus"].(map[string]any); ok {
			m = maps.Clone(m)
			delete(m, "Leader")
			node["ManagerStatus"] = m
		}
		all = append(all, node)
	}
	return all, nil
}

// listed is an object of a list, as it came.
type listed struct{ json.RawMessage }

func (o listed) begins(prefix string) bool {
	var object struct {
		Spec struct {
			Name   string
			Labels map[string]string
		}
	}
	if json.Unmarshal(o.RawMessage, &object) != nil {
		return true
	}
	if strings.HasPrefix(object.Spec.Name, prefix) {
		return true
	}
	for _, value := range object.Spec.Labels {
		if strings.HasPrefix(value, prefix) {
			return true
		}
	}
	return false
}

// change reads an answer, changes it and puts it back.
func change[T any](r *http.Response, f func(T) (T, error)) error {
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return err
	}
	var value T
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber() // a version has more digits than a float64
	if err := decoder.Decode(&value); err != nil {
		return err
	}
	if value, err = f(value); err != nil {
		return err
	}
	if body, err = json.Marshal(value); err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}
