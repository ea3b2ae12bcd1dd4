package config

import (
	"slices"

	"github.com/spf13/pflag"
)

// Flags are the command line's view of the keys.
type Flags struct {
	set *pflag.FlagSet
}

// AddFlags adds a flag for each of these keys ("health.listen") to set, or for all keys if none is named. Their values are read by Load, so that
// everything that is wrong is told at once.
func AddFlags(set *pflag.FlagSet, paths ...string) *Flags {
	for _, k := range keys {
		if len(paths) > 0 && !slices.Contains(paths, k.path()) {
			continue
		}
		usage := k.doc
		if b := k.bounds(); b != "" {
			usage += " " + b
		}
		if k.def != "" {
			usage += " (default " + k.def + ")"
		}
		set.String(k.flag(), "", usage)
		f := set.Lookup(k.flag())
		f.DefValue = "" // it is a part of the text
		if _, ok := k.target(&Config{}).(*bool); ok {
			f.NoOptDefVal = "true"
		}
	}
	return &Flags{set: set}
}

// lookup returns the value of a flag that was given.
func (f *Flags) lookup(name string) (string, bool) {
	if f == nil {
		return "", false
	}
	flag := f.set.Lookup(name)
	if flag == nil || !flag.Changed {
		return "", false
	}
	return flag.Value.String(), true
}
