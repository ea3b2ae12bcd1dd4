//go:build !unix

package rig

// take does nothing here: a rig needs Linux.
func (r *Rig) take() error { return nil }
