package store

import (
	"testing"
	"time"
)

func TestConfigDefaults(t *testing.T) {
	c := Config{}.withDefaults()
	if c.AppendWorkers != 2 || c.MaxConns != 12 || c.AppendTimeout != 5*time.Second || c.IDWindow != 10*time.Minute || c.Logger == nil {
		t.Errorf("%+v", c)
	}
	if err := c.validate(); err != nil {
		t.Error(err)
	}
	if c := (Config{AppendWorkers: 20}).withDefaults(); c.validate() != nil {
		t.Errorf("20 append workers get %d connections", c.MaxConns)
	}
}

func TestSQLitePathsInURLs(t *testing.T) {
	for url, want := range map[string]string{
		"sqlite:switchyard.db": "switchyard.db", "sqlite:///data/x.db": "/data/x.db", "sqlite:/data/x.db": "/data/x.db",
		"sqlite://x.db": "x.db", "sqlite:": "", "postgres://x": "-", "postgresql://x": "-",
	} {
		path, ok := sqlitePath(url)
		if !ok {
			path = "-"
		}
		if path != want {
			t.Errorf("%s is %q, want %q", url, path, want)
		}
	}
}
