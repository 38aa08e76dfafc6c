package app

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"switchyard/internal/config"
)

// debugPages are the paths on the admin listener that PrintDebugPage prints, by
// name.
var debugPages = map[string]string{
	"rooms": "/debug/rooms", "heap": "/debug/pprof/heap?debug=1", "goroutines": "/debug/pprof/goroutine?debug=1",
}

// profiles are the profiles that the admin listener returns at once, without
// recording for a while.
var profiles = []string{"heap", "goroutine", "allocs", "block", "mutex"}

// debugPageTimeout bounds one request for a debug page or profile.
const debugPageTimeout = 20 * time.Second

// PrintDebugPage prints a debug page of the node on this host, from its
// ADMIN_ADDR: the live rooms unless args name another one.
func PrintDebugPage(ctx context.Context, cfg config.Config, args []string, stdout io.Writer) error {
	name := "rooms"
	if len(args) > 0 {
		name = args[0]
	}
	page, known := debugPages[name]
	if !known || len(args) > 1 {
		return fmt.Errorf("look takes one of rooms, heap, goroutines, not %q", strings.Join(args, " "))
	}
	return adminPage(ctx, cfg, page, stdout)
}

// Profile writes a profile of the node on this host to stdout: of the heap
// unless args name another one.
func Profile(ctx context.Context, cfg config.Config, args []string, stdout io.Writer) error {
	name := "heap"
	if len(args) > 0 {
		name = args[0]
	}
	if len(args) > 1 || !slices.Contains(profiles, name) {
		return fmt.Errorf("profile takes one of %s", strings.Join(profiles, ", "))
	}
	return adminPage(ctx, cfg, "/debug/pprof/"+name, stdout)
}

// adminPage copies a page of the admin listener to stdout. It exists because the
// image of the service holds no other program that could make the request.
func adminPage(ctx context.Context, cfg config.Config, page string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, debugPageTimeout)
	defer cancel()
	address, err := localURL("ADMIN_ADDR", cfg.Admin.Addr)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+page, nil)
	if err != nil {
		return fmt.Errorf("ADMIN_ADDR=%s: %w", cfg.Admin.Addr, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the node was not reached on ADMIN_ADDR=%s: %w", cfg.Admin.Addr, err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ADMIN_ADDR=%s answered %s", cfg.Admin.Addr, res.Status)
	}
	if _, err := io.Copy(stdout, res.Body); err != nil {
		return fmt.Errorf("the answer ended early: %w", err)
	}
	return nil
}
