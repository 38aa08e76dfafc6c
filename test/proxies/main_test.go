// Package proxies tests the service behind the proxies of docs/proxies.md, with the
// configurations that stand there.
package proxies

import (
	"flag"
	"testing"

	"switchyard/internal/testkit"
)

var (
	all = flag.Bool("proxies.all", false, "test behind every proxy of docs/proxies.md and wait for idle timeouts, as make proxies does; nginx alone otherwise")
	// traefik is no Debian package, so that it may lie anywhere.
	traefikProgram = flag.String("proxies.traefik", "traefik", "the program of Traefik")
)

func TestMain(m *testing.M) { testkit.Main(m) }

// Every configuration in docs/proxies.md is one that make proxies runs.
func TestEveryConfigurationIsRun(t *testing.T) {
	blocks := configurations(t)
	for _, kind := range proxyKinds {
		for _, path := range kind.files {
			if blocks[path] == "" {
				t.Errorf("docs/proxies.md has no configuration %s", path)
			}
			delete(blocks, path)
		}
	}
	for path := range blocks {
		t.Errorf("nothing runs the configuration %s", path)
	}
}

// What docs/proxies.md says of each proxy is true of the program: pages connect, pages
// of others do not, clients keep their addresses, and connections end as they should.
func TestTheServiceBehindAProxy(t *testing.T) {
	blocks := configurations(t)
	for _, kind := range proxyKinds {
		if !*all && kind.name != "nginx" {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, kind, blocks)
			t.Run("PagesOfTheServiceConnect", s.testPagesOfTheServiceConnect)
			t.Run("PagesOfOthersAreRefused", s.testPagesOfOthersAreRefused)
			t.Run("ThePageWorksUnderAPrefix", s.testThePageWorksUnderAPrefix)
			t.Run("AHalfClosedConnectionEnds", s.testAHalfClosedConnectionEnds)
			t.Run("ACloseCodeArrives", s.testACloseCodeArrives)
			if *all {
				t.Run("AnIdleConnectionStays", s.testAnIdleConnectionStays)
			}
			t.Run("TheEndOfTheServiceArrives", s.testTheEndOfTheServiceArrives)
		})
	}
}
