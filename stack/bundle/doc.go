// Package bundle gathers all that a stack's compose files refer to on the sender's side, and opens it on the agent's side as a closed world.
//
// docker/cli's loader reads files and variables from the machine that it runs on. On an agent that would let a manifest publish the agent's own files, so
// both come from the bundle alone: a file is a key in a map (see files), a variable is an entry of Content.Variables, and the loader meets nothing on the
// disk but private copies that Load has made. Gather runs the very same reader over the sender's disk and environment and keeps what it asked for.
package bundle
