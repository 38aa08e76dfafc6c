package app

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"switchyard/internal/config"
)

// The commands reach a listener on every address by loopback.
func TestTheURLOfAListenerOnThisHost(t *testing.T) {
	for address, want := range map[string]string{
		":8000": "http://127.0.0.1:8000", "0.0.0.0:8000": "http://127.0.0.1:8000", "[::]:8000": "http://127.0.0.1:8000",
		"10.0.0.1:8000": "http://10.0.0.1:8000", "[::1]:8000": "http://[::1]:8000", "localhost:8000": "http://localhost:8000",
	} {
		if got, err := localURL("LISTEN_ADDR", address); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", address, got, err, want)
		}
	}
	if _, err := localURL("LISTEN_ADDR", "8000"); err == nil || !strings.HasPrefix(err.Error(), "LISTEN_ADDR=8000: ") {
		t.Errorf("an address without a port: %v", err)
	}
}

// Docker and Traefik run the command to learn whether the service is healthy.
func TestHealthcheck(t *testing.T) {
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			t.Errorf("requested %s", r.URL.Path)
		}
		w.Header().Set("Connection", "close")
		w.WriteHeader(status)
	}))
	cfg := config.Config{HTTP: config.HTTP{ListenAddr: srv.Listener.Addr().String()}}
	if err := Healthcheck(t.Context(), cfg); err != nil {
		t.Error(err)
	}
	status = http.StatusServiceUnavailable
	if err := Healthcheck(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a service that answers 503: %v", err)
	}
	srv.Close()
	if err := Healthcheck(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "not healthy") {
		t.Errorf("no service: %v", err)
	}
}

// Operators read durations in log lines, and programs read lines of JSON.
func TestLogLinesAreInTheConfiguredFormat(t *testing.T) {
	for format, want := range map[string]string{
		"json": `"msg":"x","took":"1.5s"}`, "text": "msg=x took=1.5s",
	} {
		var b strings.Builder
		level := new(slog.LevelVar)
		logger := newLogger(&b, format, level)
		logger.Debug("hidden")
		logger.Info("x", "took", 1500*time.Millisecond)
		if !strings.Contains(b.String(), want) || strings.Count(b.String(), "\n") != 1 {
			t.Errorf("%s: %s", format, b.String())
		}
		level.Set(slog.LevelDebug)
		if logger.Debug("shown"); !strings.Contains(b.String(), "shown") {
			t.Errorf("%s: the level did not change", format)
		}
	}
}
