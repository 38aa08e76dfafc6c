package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// A countingProxy stands before a server that may be away. Then it ends each connection
// without an answer, and counts what was asked of it.
type countingProxy struct {
	proxy *httputil.ReverseProxy

	mu    sync.Mutex // Protects following.
	away  bool
	asked map[string]int // by path, while the server was away
}

func newCountingProxy(server *testkit.Server) *countingProxy {
	target := &url.URL{Scheme: "http", Host: server.Addr}
	return &countingProxy{proxy: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // with which the origin of the page is compared
		},
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
}

func (p *countingProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	away := p.away
	if away {
		p.asked[r.URL.Path]++
	}
	p.mu.Unlock()
	if away {
		panic(http.ErrAbortHandler)
	}
	p.proxy.ServeHTTP(w, r)
}

func (p *countingProxy) set(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
	p.asked = map[string]int{}
}

func (p *countingProxy) count(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

// The server is away, for long in make browsers. Three tabs fail once each, and then
// ask for a small file instead of failing again, for which Firefox would hold back
// the sockets that they open when the server is there again.
func testTheServerIsAway(t *testing.T, e *env) {
	server := testkit.StartServer(t, nil)
	proxy := newCountingProxy(server)
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	var tabs []window
	for i := range 3 {
		tabs = append(tabs, openShared(t, e, front.URL+"/#siding", fmt.Sprint("tab", i+1)))
	}
	proxy.set(true)
	server.Kill()
	typeMessage(tabs[2], "while away")
	testkit.Eventually(t, "each tab asks for the file twice", func() bool { return proxy.count("/icon.svg") >= 6 })
	if *all {
		<-time.After(150 * time.Second)
	}
	if sockets := proxy.count("/ws"); sockets > len(tabs)*2 {
		t.Errorf("%d sockets were opened while the server was away, want one or two of each tab", sockets)
	}
	server.Restart()
	proxy.set(false)
	back := time.Now()
	for _, w := range tabs {
		w.Until(`document.body.dataset.state === "live"`)
	}
	took := time.Since(back)
	t.Logf("all tabs were back after %v", took)
	if *all && took > 5*time.Second {
		t.Errorf("the tabs were back after %v, want 5 s", took)
	}
	for _, w := range tabs {
		waitForRows(w, 1)
		w.Until(clean)
	}
}
