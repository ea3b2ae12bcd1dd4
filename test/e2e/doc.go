// Package e2e holds the end-to-end tests: the shipped images, installed as an operator installs them (plane as a container, agent by deploy/axion-stack.yml as a
// global service), driven by axionctl, on the engine and Swarm of this machine. They need a manager's engine and Go to build the images; they skip, with the
// reason, where there is none. Names and ports are their own, so that they run beside `make up`.
package e2e
