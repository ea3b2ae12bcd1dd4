// Package crash kills agents. Real agent processes, built with the crash points of internal/crashpoint, are the managers of one real Swarm - each sees the
// machine's engine as a node of its own - and take commands from a real plane, over its embedded broker and, in the long form, over an Apache Kafka. They are
// killed at each step of a command's life, at random, and asked to end; then it is looked at what became of each command: in the topic of events, in the Swarm,
// and in the list of all that was written through the proxies between the agents and the engine.
package crash
