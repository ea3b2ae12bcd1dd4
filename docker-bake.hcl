// Multi-platform images of agent and plane. The build stage cross-compiles on the build platform, so that no emulation is needed.
//   docker buildx bake --set '*.output=type=registry' ...
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }
variable "SOURCE" { default = "https://github.com/axion/runner-agent" }
// Where the images go: REGISTRY/agent:VERSION.
variable "REGISTRY" { default = "axion" }
// The base image of the build stage.
variable "GO_IMAGE" { default = "golang:1.26" }

group "default" { targets = ["agent", "plane"] }

target "_all" {
  context   = "."
  platforms = ["linux/amd64", "linux/arm64"]
  args = {
    GO_IMAGE = GO_IMAGE
    VERSION  = VERSION
    REVISION = REVISION
    SOURCE   = SOURCE
  }
}

target "agent" {
  inherits = ["_all"]
  target   = "agent"
  tags     = ["${REGISTRY}/agent:${VERSION}"]
}

target "plane" {
  inherits = ["_all"]
  target   = "plane"
  tags     = ["${REGISTRY}/plane:${VERSION}"]
}

target "hello" {
  inherits = ["_all"]
  target   = "hello"
  tags     = ["${REGISTRY}/hello:${VERSION}"]
}
