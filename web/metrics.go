package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricPrefix starts the name of each metric of ours.
const metricPrefix = "trunkhall_"

// A MetricKind says how a value behaves.
type MetricKind int

// The kinds of metric.
const (
	Gauge   MetricKind = iota // as of now
	Counter                   // since the start; only ever rises
)

// A Metric is one number as of now. Metrics of one name have the same help, kind
// and label names. Labels must have few values each: never rooms, users or
// telephone numbers.
type Metric struct {
	Name   string // without "trunkhall_"
	Help   string
	Kind   MetricKind
	Labels map[string]string
	Value  float64

	// A histogram has these in place of Value: how many observations there were up
	// to each bound, all together, and their sum.
	Buckets map[float64]uint64
	Count   uint64
	Sum     float64
}

// metrics is the collector behind /metrics. It holds nothing: each scrape asks.
type metrics struct {
	list func() []Metric
	log  *slog.Logger
}

// Describe says nothing in advance: which trunks there are changes.
func (m metrics) Describe(chan<- *prometheus.Desc) {}

// Collect asks for the numbers of now. What is malformed is left out.
func (m metrics) Collect(out chan<- prometheus.Metric) {
	for _, v := range m.list() {
		names := slices.Sorted(maps.Keys(v.Labels))
		values := make([]string, len(names))
		for i, name := range names {
			values[i] = strings.ToValidUTF8(v.Labels[name], "�")
		}
		desc := prometheus.NewDesc(metricPrefix+v.Name, v.Help, names, nil)
		var metric prometheus.Metric
		var err error
		switch {
		case v.Buckets != nil:
			metric, err = prometheus.NewConstHistogram(desc, v.Count, v.Sum, v.Buckets, values...)
		case v.Kind == Counter:
			metric, err = prometheus.NewConstMetric(desc, prometheus.CounterValue, v.Value, values...)
		default:
			metric, err = prometheus.NewConstMetric(desc, prometheus.GaugeValue, v.Value, values...)
		}
		if err != nil {
			m.log.Error("a metric is malformed", "name", v.Name, "err", err)
			continue
		}
		out <- metric
	}
}

// newMetrics returns what answers /metrics, before anybody asks who asks.
func newMetrics(list func() []Metric, log *slog.Logger) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if list != nil {
		registry.MustRegister(metrics{list, log})
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
		EnableOpenMetrics:   true,
	})
}

// serveMetrics answers /metrics on the one HTTP port. It is there only with a
// token: a reverse proxy makes strangers look like this machine.
func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if s.cfg.MetricsToken == "" {
		http.NotFound(w, r)
		return
	}
	s.guardedMetrics(w, r)
}

// guardedMetrics answers those who know the token, if there is one.
func (s *Server) guardedMetrics(w http.ResponseWriter, r *http.Request) {
	if !readOnly(w, r) {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if want := s.cfg.MetricsToken; want != "" {
		_, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
		if subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="metrics"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
	}
	s.metrics.ServeHTTP(w, r)
}

// listenMetrics binds the port of their own that metrics may have.
func (s *Server) listenMetrics() error {
	if s.cfg.MetricsListen == "" {
		return nil
	}
	ln, err := net.Listen("tcp", s.cfg.MetricsListen)
	if err != nil {
		return fmt.Errorf("web.metrics_listen: %w", err)
	}
	s.metricsLn = ln
	s.metricsHTTP = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/metrics" {
				http.NotFound(w, r)
				return
			}
			s.guardedMetrics(w, r)
		}),
		ReadTimeout:  readHeaderTimeout,
		WriteTimeout: bodyTimeout,
		IdleTimeout:  idleTimeout,
		ErrorLog:     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return nil
}

// MetricsAddr returns the address of the port that only serves /metrics, the zero
// address if there is none.
func (s *Server) MetricsAddr() netip.AddrPort {
	if s.metricsLn == nil {
		return netip.AddrPort{}
	}
	return s.metricsLn.Addr().(*net.TCPAddr).AddrPort()
}

// runMetrics serves that port until closed and reports what made it end early.
func (s *Server) runMetrics() error {
	if err := s.metricsHTTP.Serve(s.metricsLn); err != http.ErrServerClosed {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// validateMetrics returns the complaints about the settings for metrics.
func (c Config) validateMetrics() (errs []error) {
	if c.MetricsToken != "" && len(c.MetricsToken) < 16 {
		errs = append(errs, fmt.Errorf("web.metrics_token: needs at least 16 characters"))
	}
	if c.MetricsListen == "" {
		return errs
	}
	host, _, err := net.SplitHostPort(c.MetricsListen)
	if err != nil {
		return append(errs, fmt.Errorf("web.metrics_listen: %q is not host:port", c.MetricsListen))
	}
	ip, err := netip.ParseAddr(host)
	if local := host == "localhost" || err == nil && ip.IsLoopback(); !local && c.MetricsToken == "" {
		errs = append(errs, fmt.Errorf("web.metrics_listen: others can reach %s: give a web.metrics_token too, or listen on 127.0.0.1", c.MetricsListen))
	}
	return errs
}
