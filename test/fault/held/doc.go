// Package held holds back requests to the engine. Managers are the agents' own parts - journal, fence, command runner, stack engine - on the machine's Swarm, each
// behind a proxy of its own that holds one request at any place, lets it take effect when another manager has gone on, or loses its answer.
package held
