// Package cluster breaks a real Swarm of several nodes (test/rig) in the middle of deployments: agents, engines, nodes, leaders, links, disks and the plane. After
// each fault another manager must go on, the command must end with one true outcome, and the cluster must be whole again.
//
// One rig serves all tests; it is healed and checked between them. Where the machine cannot have a rig, the tests skip with the reason.
package cluster
