// Package rig makes a real Swarm of several nodes on one machine, so that tests can break it: each node is a container with an engine of its own, the
// nodes are joined to one Swarm, the shipped agent image runs on them as its global service, and a control plane stands beside them on the same network.
// Nodes and plane can be killed, stopped, frozen, cut off, slowed down and brought back.
//
//	r := rig.Start(t, rig.Config{Name: "mine", AgentImage: "axion/agent:rig", PlaneImage: "axion/plane:rig"})
//	leader, err := r.Leader(ctx)
//	err = leader.Kill(ctx)
//
// Everything that a rig makes bears the label axion.rig=NAME and is removed by it, also after a test that was killed: bringing up a rig first removes what
// an earlier one of that name left. All addresses are of 198.18.0.0/15, the benchmarking range of RFC 2544, and the rig's network leads nowhere else.
//
// What a rig cannot do: a kernel without IPVS carries no traffic for virtual IPs (use `endpoint_mode: dnsrr` and ports in host mode), one without netem
// delays no packets (see Host.Slow), and there is only one clock (see Node.SkewClock). Images are brought in by LoadImage; no node can reach a registry
// outside the rig, so services are made with `resolve-image never`.
package rig
