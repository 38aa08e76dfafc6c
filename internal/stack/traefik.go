package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

// Traefik controls the balancer: it writes Traefik's files and queries its API.
type Traefik struct {
	// Dir holds dynamic/, staging/, blue.yml and green.yml.
	Dir string
	// API returns the URL of its API, such as http://127.0.0.1:8080.
	API func(ctx context.Context) (string, error)
	// Client queries the API; nil means the client for containers.
	Client *http.Client
}

// ActivePath returns the path of the file with the route.
func (t *Traefik) ActivePath() string { return filepath.Join(t.Dir, "dynamic", "active.yml") }

// servicesPath returns the path of the file with the lists of servers.
func (t *Traefik) servicesPath() string { return filepath.Join(t.Dir, "dynamic", "services.yml") }

// stagingDir returns the folder for temporary files: Traefik watches dynamic.
func (t *Traefik) stagingDir() string { return filepath.Join(t.Dir, "staging") }

// Route reads active.yml.
func (t *Traefik) Route(context.Context) (Route, error) {
	text, err := os.ReadFile(t.ActivePath())
	if err != nil {
		return Route{}, fmt.Errorf("%w: %w", errRoute, err)
	}
	r, err := parseRoute(text)
	if err != nil {
		return Route{}, fmt.Errorf("%s: %w", t.ActivePath(), err)
	}
	return r, nil
}

// SetRoute replaces active.yml by a rename: Traefik reads the old file or the new
// one.
func (t *Traefik) SetRoute(_ context.Context, r Route) error {
	text, err := t.Render(r)
	if err != nil {
		return err
	}
	// Even an unchanged file is replaced: Traefik may have missed the first write.
	return rewriteFile(t.ActivePath(), t.stagingDir(), text)
}

// Render returns the text of active.yml for a route: a color's file as it is, or
// the live color's file with weights.
func (t *Traefik) Render(r Route) ([]byte, error) {
	path := filepath.Join(t.Dir, string(r.Live)+".yml")
	text, file, err := readDynamic(path)
	if err != nil {
		return nil, err
	}
	if got, err := parseRoute(text); err != nil || got != (Route{Live: r.Live}) {
		return nil, errors.Join(fmt.Errorf("%s must route to %s", path, r.Live.failoverService()), err)
	}
	// Traefik would answer every request to a service that it does not know with 404.
	_, list, err := readDynamic(t.servicesPath())
	if err != nil {
		return nil, err
	}
	for _, router := range file.HTTP.Routers {
		name, provider, _ := strings.Cut(router.Service, "@")
		if _, ours := colorOfService(name); !ours || provider != "" && provider != "file" {
			continue
		}
		if _, there := list.HTTP.Services[name]; !there {
			return nil, fmt.Errorf("%s routes to %s, which %s does not have: both files must be of the same release", path, router.Service, t.servicesPath())
		}
	}
	if r.SharePercent > 0 {
		return withShare(text, r)
	}
	return text, nil
}

// readDynamic reads a file of Traefik's dynamic configuration.
func readDynamic(path string) (text []byte, file dynamicConfig, err error) {
	if text, err = os.ReadFile(path); err != nil {
		return nil, file, fmt.Errorf("read Traefik's files: %w", err)
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, file, fmt.Errorf("%s: %w", path, err)
	}
	return text, file, nil
}

// routerNames returns the names of the routers for user traffic, from blue.yml. Other
// files may have routers to a color, too, for operators.
func (t *Traefik) routerNames() (map[string]bool, error) {
	_, file, err := readDynamic(filepath.Join(t.Dir, string(Blue)+".yml"))
	names := map[string]bool{}
	for name, router := range file.HTTP.Routers {
		if _, ours := colorOfService(router.Service); ours {
			names[name] = true
		}
	}
	return names, err
}

// Status returns the route that Traefik follows and the servers that are up.
func (t *Traefik) Status(ctx context.Context) (BalancerStatus, error) {
	api, err := t.API(ctx)
	if err != nil {
		return BalancerStatus{}, err
	}
	var routers []struct{ Name, Service, Status string }
	if err := FetchJSON(ctx, t.Client, api+"/api/http/routers?per_page=1000", &routers); err != nil {
		return BalancerStatus{}, fmt.Errorf("query Traefik: %w", err)
	}
	var services []struct {
		Name         string
		ServerStatus map[string]string
		Weighted     struct{ Services []weightedService }
	}
	if err := FetchJSON(ctx, t.Client, api+"/api/http/services?per_page=1000", &services); err != nil {
		return BalancerStatus{}, fmt.Errorf("query Traefik: %w", err)
	}
	out := BalancerStatus{ServersUp: map[Color]int{}}
	var weighted []weightedService
	for _, s := range services {
		if c, ok := colorOfService(s.Name); ok {
			for _, status := range s.ServerStatus {
				if status == "UP" {
					out.ServersUp[c]++
				}
			}
		}
		if name, _, _ := strings.Cut(s.Name, "@"); name == splitService {
			weighted = s.Weighted.Services
		}
	}
	names, err := t.routerNames()
	if err != nil {
		return out, err
	}
	seen := 0
	for _, r := range routers {
		name, provider, _ := strings.Cut(r.Name, "@")
		if !names[name] || provider != "file" {
			continue
		}
		route, err := routeOfService(r.Service, weighted)
		switch {
		case err != nil:
			return out, err
		case r.Status != "enabled":
			return out, fmt.Errorf("Traefik reports that its router %s is %s", name, r.Status)
		case seen > 0 && route != out.Route:
			return out, errors.New("Traefik reports that its routers route to both colors")
		}
		out.Route = route
		seen++
	}
	if seen < len(names) {
		return out, fmt.Errorf("Traefik reports %d of %d routers", seen, len(names))
	}
	return out, nil
}

// routeOfService returns the route that a Traefik router with this service follows.
func routeOfService(service string, weighted []weightedService) (Route, error) {
	if c, ok := colorOfService(service); ok {
		return Route{Live: c}, nil
	}
	if name, _, _ := strings.Cut(service, "@"); name == splitService {
		return weightedRoute(weighted)
	}
	return Route{}, fmt.Errorf("Traefik reports a router that routes to %q", service)
}

// replicaInURL matches the name and the number of a replica in a server's address.
var replicaInURL = regexp.MustCompile(`(app_(?:blue|green)-)\d+`)

// SetServers lists a color's replicas 1 to n in services.yml. It derives their
// addresses from the first one in the file.
func (t *Traefik) SetServers(c Color, n int) error {
	path := t.servicesPath()
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("list the replicas: %w", err)
	}
	changed, err := withServers(text, c, n)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if bytes.Equal(changed, text) {
		return nil
	}
	return rewriteFile(path, t.stagingDir(), changed)
}

// withServers returns the text of services.yml with a color's servers 1 to n.
func withServers(text []byte, c Color, n int) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, errors.New("it is empty")
	}
	servers := mappingValue(mappingValue(mappingValue(mappingValue(mappingValue(doc.Content[0], "http"), "services"), c.TraefikService()), "loadBalancer"), "servers")
	if servers == nil || len(servers.Content) == 0 {
		return nil, fmt.Errorf("%s has no servers", c.TraefikService())
	}
	if len(servers.Content) == n {
		return text, nil // already right
	}
	first := mappingValue(servers.Content[0], "url")
	if first == nil || !replicaInURL.MatchString(first.Value) {
		return nil, fmt.Errorf("the first server of %s has no address like http://…app_%s-1:8000", c.TraefikService(), c)
	}
	// Only the lines of the servers change: comments and formatting of the rest of
	// the file stay.
	lines := bytes.SplitAfter(append(bytes.TrimRight(text, "\n"), '\n'), []byte("\n"))
	from := servers.Content[0].Line
	for i, server := range servers.Content {
		if servers.Style&yaml.FlowStyle != 0 || server.Line != from+i {
			return nil, fmt.Errorf("the servers of %s must be on consecutive lines, one per line", c.TraefikService())
		}
	}
	var out bytes.Buffer
	out.Write(bytes.Join(lines[:from-1], nil))
	for i := range n {
		out.Write(replicaInURL.ReplaceAll(lines[from-1], fmt.Appendf(nil, "${1}%d", i+1)))
	}
	out.Write(bytes.Join(lines[from-1+len(servers.Content):], nil))
	return out.Bytes(), nil
}
