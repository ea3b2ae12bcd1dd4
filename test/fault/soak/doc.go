// Package soak lets one agent and one plane, both the shipped programs, work on the machine's own Swarm for a long time compressed into a short one: deployment
// after deployment of changing stacks, with kills, restarts, cuts and repeated messages at random. What must hold is that no command is lost or told twice, that
// the Swarm is in the end what the last generations say, that what is kept in it stays small and free of secrets, and that neither program grows.
package soak
