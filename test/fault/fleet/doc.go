// Package fleet tests what a thousand agents and more do to one plane, and it to them: all hold their sessions, then the plane is restarted, killed, or away for
// minutes, and all have to come back soon and none in a hurry. The plane is the shipped program in a process of its own; the agents are the client that the
// agent has for its session (agent/session), a certificate each, all in the test's process. Both sides share the machine's cores.
package fleet
