package app

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"switchyard/internal/config"
	"switchyard/internal/hub"
	"switchyard/internal/testkit"
)

// A node that starts gets no clients until its canary was published and delivered.
func TestANodeIsNotReadyBeforeItsFirstDelivery(t *testing.T) {
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	a := &App{
		node:      "n1",
		opt:       Options{Config: config.Config{Store: config.Store{URL: config.Secret("sqlite:" + t.TempDir() + "/log.db")}}, Logger: logger},
		registry:  prometheus.NewRegistry(),
		lifecycle: lifecycle{log: logger},
	}
	defer func() {
		if err := a.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for _, part := range []func(context.Context) error{a.openLog, a.openBroker, a.openSharedState} {
		if err := part(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.hub = hub.New(hub.Config{
		Log: a.log, Feed: a.log, Batches: a.log, RoomLister: a.log, Broker: a.broker, Node: "n1", Logger: logger, Registerer: a.registry,
	})
	a.lifecycle.onStop("hub", hubStopTimeout, a.hub.Close)
	states := func() string {
		var s []string
		for _, c := range a.components() {
			if c.Needed {
				s = append(s, c.Name+" "+c.State)
			}
		}
		return strings.Join(s, ", ")
	}
	if got := states(); got != "log up, delivery starting" {
		t.Errorf("before the first delivery: %s", got)
	}
	a.broker.Start(a.hub.Receive)
	a.log.Start(a.hub.Completed)
	a.hub.Start()
	testkit.EventuallyNil(t, "the node to be ready", func() error {
		if got := states(); got != "log up, delivery up" {
			return errors.New(got)
		}
		return nil
	})
}
