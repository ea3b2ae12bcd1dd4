# Images of the agent, the reference plane and the sample. Each final stage is from scratch and holds one static program, CA roots and the folders that it needs.
#
# The build stage cross-compiles on the build platform. A machine that has Go skips it: `make images` builds the same root folders with
# deploy/build-rootfs and hands the final stages below to the builder (deploy/build-image).
ARG GO_IMAGE=golang:1.26

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=dev
ARG REVISION=unknown
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/go-build --mount=type=cache,target=/go/pkg/mod \
    VERSION=$VERSION REVISION=$REVISION deploy/build-rootfs /rootfs $TARGETOS $TARGETARCH agent plane hello axionctl

FROM scratch AS axionctl
COPY --from=build /rootfs/axionctl/ /

FROM scratch AS agent
ARG VERSION=dev
ARG REVISION=unknown
ARG SOURCE=https://github.com/axion/runner-agent
LABEL org.opencontainers.image.title="Axion Runner Agent" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=$SOURCE
COPY --from=build /rootfs/agent/ /
VOLUME /var/lib/axion
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["/axion-agent", "healthcheck"]
ENTRYPOINT ["/axion-agent"]

FROM scratch AS plane
ARG VERSION=dev
ARG REVISION=unknown
ARG SOURCE=https://github.com/axion/runner-agent
LABEL org.opencontainers.image.title="Axion reference control plane" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=$SOURCE
COPY --from=build /rootfs/plane/ /
VOLUME /var/lib/axion-plane
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["/axion-plane", "healthcheck"]
ENTRYPOINT ["/axion-plane"]

FROM scratch AS hello
ARG VERSION=dev
ARG REVISION=unknown
ARG SOURCE=https://github.com/axion/runner-agent
LABEL org.opencontainers.image.title="Axion sample" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.source=$SOURCE
COPY --from=build /rootfs/hello/ /
ENTRYPOINT ["/hello"]
