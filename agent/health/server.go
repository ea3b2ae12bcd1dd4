package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Bounds of the server. Its callers are a health check and a Prometheus server.
const (
	readTimeout     = 5 * time.Second
	writeTimeout    = 10 * time.Second
	idleTimeout     = 60 * time.Second
	shutdownTimeout = 2 * time.Second
	maxHeaderBytes  = 8 << 10
)

// Config says where to answer and who answers.
type Config struct {
	// Listen is "host:port"; a port of 0 takes a free one (see Server.Addr).
	Listen string
	// Version and Revision are the agent's own.
	Version, Revision string
}

// Deps are what a Server needs from outside.
type Deps struct {
	// Warnings returns what is not as it should be, the worst first.
	Warnings func() []*runnerv1.HealthWarning
	// AgentID returns the agent's id; empty before enrolment.
	AgentID func() string
	// EngineReachable says whether the engine answers.
	EngineReachable func() bool
	Log             *slog.Logger
}

// Server answers /livez, /readyz, /health and /metrics.
type Server struct {
	cfg      Config
	deps     Deps
	registry *prometheus.Registry
	http     *http.Server

	ready chan struct{}
	addr  net.Addr // written before ready is closed
}

// NewServer returns a server that does not listen yet.
func NewServer(cfg Config, deps Deps) *Server {
	s := &Server{cfg: cfg, deps: deps, registry: newRegistry(cfg, deps.Warnings), ready: make(chan struct{})}
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(deps.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Register adds figures of another component to /metrics. It fails if their names are taken.
func (s *Server) Register(c prometheus.Collector) error {
	return s.registry.Register(c)
}

// Addr waits until the server listens and returns its address; nil if ctx ended first.
func (s *Server) Addr(ctx context.Context) net.Addr {
	select {
	case <-s.ready:
		return s.addr
	case <-ctx.Done():
		return nil
	}
}

// Run answers until ctx ends; then it lets running answers finish for up to 2 s and returns nil. It may be called once.
// Failures: conflict health_listen if the address cannot be had.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return failure.New(failure.Conflict, "health_listen", s.cfg.Listen, "health server cannot listen on %s: %w", s.cfg.Listen, err).
			WithHint("choose another address with health.listen")
	}
	s.addr = l.Addr()
	close(s.ready)
	stopped := make(chan error, 1)
	go func() { stopped <- s.http.Serve(l) }()
	select {
	case err := <-stopped:
		return fmt.Errorf("health server on %s: %w", s.cfg.Listen, err)
	case <-ctx.Done():
	}
	return errors.Join(s.shutdown(), ignoreClosed(<-stopped))
}

// shutdown ends the server, by force if an answer takes too long.
func (s *Server) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if s.http.Shutdown(ctx) == nil {
		return nil
	}
	return s.http.Close()
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// routes returns the handler. Gin is used without its default logger: a health check every few seconds is no news.
func (s *Server) routes() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(gin.Recovery())
	r.HandleMethodNotAllowed = true
	r.GET("/livez", s.livez)
	r.GET("/readyz", s.readyz)
	r.GET("/health", s.health)
	r.GET("/metrics", gin.WrapH(metricsHandler(s.registry)))
	return r
}
