package config

import "strings"

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// Where is the file and line ("agent.toml:12"), the variable ("AXION_PLANE_ADDRESS") or the flag ("--plane-address"); empty if it is nowhere.
	Where string
	// Key is "section.key"; empty if the problem is not about one.
	Key string
	// Text says what is wrong; after the key it makes a sentence.
	Text string
}

// String writes the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	if p.Where != "" {
		b.WriteString(p.Where + ": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + " ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Problems is everything that is wrong with the configuration; as an error it has a line for each.
type Problems []Problem

// Error writes the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
