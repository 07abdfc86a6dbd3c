package web

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func someMetrics() []Metric {
	return []Metric{
		{Name: "rooms", Help: "Rooms.", Value: 3},
		{Name: "sip_responses_total", Help: "Responses.", Kind: Counter, Labels: map[string]string{"code": "486"}, Value: 7},
		{Name: "sip_responses_total", Help: "Responses.", Kind: Counter, Labels: map[string]string{"code": "200"}, Value: 9},
		{Name: "sip_call_setup_seconds", Help: "Setup.", Buckets: map[float64]uint64{0.1: 1, 1: 2}, Count: 3, Sum: 4.5},
		{Name: "not a name", Help: "Broken.", Value: 1},
	}
}

func ask(t *testing.T, url, token string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestMetrics(t *testing.T) {
	deps := testDeps()
	deps.Metrics = someMetrics
	cfg := DefaultConfig()
	cfg.MetricsListen, cfg.MetricsToken = "127.0.0.1:0", "0123456789abcdef"
	s, _ := start(t, cfg, deps)
	for _, base := range []string{"http://" + s.Addr().String(), "http://" + s.MetricsAddr().String()} {
		for _, wrong := range []string{"", "wrong", "0123456789abcde"} {
			if status, _ := ask(t, base+"/metrics", wrong); status != http.StatusUnauthorized {
				t.Errorf("%s/metrics with token %q answered %d", base, wrong, status)
			}
		}
		status, body := ask(t, base+"/metrics", cfg.MetricsToken)
		if status != http.StatusOK {
			t.Fatalf("%s/metrics answered %d", base, status)
		}
		for _, want := range []string{
			"# TYPE trunkhall_rooms gauge\ntrunkhall_rooms 3\n",
			`trunkhall_sip_responses_total{code="486"} 7`,
			`trunkhall_sip_responses_total{code="200"} 9`,
			`trunkhall_sip_call_setup_seconds_bucket{le="1"} 2`,
			`trunkhall_sip_call_setup_seconds_bucket{le="+Inf"} 3`,
			"trunkhall_sip_call_setup_seconds_sum 4.5",
			"\ngo_goroutines ", "\nprocess_cpu_seconds_total ",
		} {
			if !strings.Contains(body, want) {
				t.Errorf("%q is missing in\n%s", want, body)
			}
		}
	}
	if status, _ := ask(t, "http://"+s.MetricsAddr().String()+"/config.json", cfg.MetricsToken); status != http.StatusNotFound {
		t.Errorf("the port of the metrics serves other things: %d", status)
	}
}

func TestMetricsAreHidden(t *testing.T) {
	s, _ := start(t, DefaultConfig(), testDeps())
	if status, body := ask(t, "http://"+s.Addr().String()+"/metrics", ""); status != http.StatusNotFound || strings.Contains(body, "go_") {
		t.Errorf("without a token /metrics answered %d %q", status, body)
	}
	if s.MetricsAddr().IsValid() {
		t.Error("there is a port for metrics that nobody asked for")
	}
	cfg := DefaultConfig()
	cfg.MetricsListen = "127.0.0.1:0"
	own, _ := start(t, cfg, testDeps())
	if status, _ := ask(t, "http://"+own.MetricsAddr().String()+"/metrics", ""); status != http.StatusOK {
		t.Errorf("on a local port of its own /metrics answered %d", status)
	}
	if status, _ := ask(t, "http://"+own.Addr().String()+"/metrics", ""); status != http.StatusNotFound {
		t.Errorf("the HTTP port then answered %d", status)
	}
}

func TestMetricsConfig(t *testing.T) {
	for _, c := range []struct {
		name, listen, token, complaint string
	}{
		{"nothing", "", "", ""},
		{"local", "127.0.0.1:9108", "", ""},
		{"local by name", "localhost:9108", "", ""},
		{"local, version 6", "[::1]:9108", "", ""},
		{"for others, with a token", ":9108", "0123456789abcdef", ""},
		{"for others without one", ":9108", "", "web.metrics_token"},
		{"for a network without one", "10.0.0.1:9108", "", "web.metrics_token"},
		{"a short token", "", "short", "web.metrics_token"},
		{"no port", "127.0.0.1", "", "web.metrics_listen"},
	} {
		cfg := DefaultConfig()
		cfg.MetricsListen, cfg.MetricsToken = c.listen, c.token
		err := cfg.Validate()
		if (err == nil) != (c.complaint == "") || err != nil && !strings.Contains(err.Error(), c.complaint) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	cfg := DefaultConfig()
	s, _ := start(t, DefaultConfig(), testDeps())
	cfg.MetricsListen = s.Addr().String()
	if other, err := New(func() Config { cfg.Listen = "127.0.0.1:0"; return cfg }(), testDeps()); err == nil {
		other.Close()
		t.Error("a port that is taken was taken again")
	}
}

func TestPhonesPath(t *testing.T) {
	deps := testDeps()
	s, _ := start(t, DefaultConfig(), deps)
	if resp, body := get(t, s, "/_trunkhall/phones/v1/config"); resp.StatusCode != http.StatusNotFound || !strings.Contains(body, "M_UNRECOGNIZED") {
		t.Errorf("without telephones: %d %q", resp.StatusCode, body)
	}
	deps.Phones = answer("phones")
	s, _ = start(t, DefaultConfig(), deps)
	if _, body := get(t, s, "/_trunkhall/phones/v1/config"); body != "phones" {
		t.Errorf("the telephone API answered %q", body)
	}
}

// TestOperatorPage checks that the operators' page is the client, as safe as the
// rest of it.
func TestOperatorPage(t *testing.T) {
	s, _ := start(t, DefaultConfig(), testDeps())
	home, page := get(t, s, "/")
	operator, same := get(t, s, "/operator")
	if operator.StatusCode != http.StatusOK || same != page || operator.Header.Get("Content-Security-Policy") != home.Header.Get("Content-Security-Policy") ||
		operator.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("/operator answered %d %v", operator.StatusCode, operator.Header)
	}
}
