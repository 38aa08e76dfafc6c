package stack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"gopkg.in/yaml.v3"
)

// errRoute says that active.yml can't be read or is not a valid route.
var errRoute = errors.New("the route can't be read")

// splitService is the weighted service that active.yml has while both colors get new
// connections.
const splitService = "app-canary"

// A Route says where new connections go.
type Route struct {
	Live Color `json:"live"`
	// SharePercent is the percentage of new connections that goes to the other color,
	// 0 to 99.
	SharePercent int `json:"canary,omitempty"`
}

func (r Route) String() string {
	if r.SharePercent > 0 {
		return fmt.Sprintf("%s, %d%% to %s", r.Live, r.SharePercent, r.Live.Other())
	}
	return string(r.Live)
}

// dynamicConfig is the part of a file of Traefik's dynamic configuration that this
// package reads.
type dynamicConfig struct {
	HTTP struct {
		Routers map[string]struct {
			Service string `yaml:"service"`
		} `yaml:"routers"`
		Services map[string]struct {
			Weighted struct {
				Services []weightedService `yaml:"services"`
			} `yaml:"weighted"`
		} `yaml:"services"`
	} `yaml:"http"`
}

// A weightedService is a member of a weighted service of Traefik.
type weightedService struct {
	Name   string `yaml:"name" json:"name"`
	Weight *int   `yaml:"weight" json:"weight"`
}

// parseRoute reads the text of active.yml. It accepts only an unambiguous route: a
// truncated file is an error, or names no router.
func parseRoute(text []byte) (Route, error) {
	var file dynamicConfig
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return Route{}, fmt.Errorf("%w: %w", errRoute, err)
	}
	var found Route
	for name, router := range file.HTTP.Routers {
		here, ours, err := file.routeOf(name, router.Service)
		switch {
		case err != nil:
			return Route{}, err
		case !ours:
			continue
		case found != Route{} && found != here:
			return Route{}, fmt.Errorf("%w: its routers name both colors", errRoute)
		}
		found = here
	}
	if found == (Route{}) {
		return Route{}, fmt.Errorf("%w: no router names %s or %s", errRoute, Blue.failoverService(), Green.failoverService())
	}
	return found, nil
}

// routeOf returns the route of a router. ours is false for a router that does not
// route to a color, such as that of Traefik's own API.
func (c *dynamicConfig) routeOf(router, service string) (r Route, ours bool, err error) {
	service, _, _ = strings.Cut(service, "@")
	if c, ok := colorOfService(service); ok {
		return Route{Live: c}, true, nil
	}
	if service == "" {
		return Route{}, false, fmt.Errorf("%w: router %s names no service", errRoute, router)
	}
	if service != splitService {
		return Route{}, false, nil
	}
	r, err = weightedRoute(c.HTTP.Services[splitService].Weighted.Services)
	return r, true, err
}

// weightedRoute returns the route of splitService by its members. Its first member
// is the live color.
func weightedRoute(services []weightedService) (Route, error) {
	if len(services) != 2 {
		return Route{}, fmt.Errorf("%w: %s needs both colors", errRoute, splitService)
	}
	live, isColor := colorOfService(services[0].Name)
	other, isOther := colorOfService(services[1].Name)
	if !isColor || !isOther || other != live.Other() || services[0].Weight == nil || services[1].Weight == nil {
		return Route{}, fmt.Errorf("%w: %s needs both colors with weights", errRoute, splitService)
	}
	a, b := *services[0].Weight, *services[1].Weight
	if a < 1 || b < 1 || a+b != 100 {
		return Route{}, fmt.Errorf("%w: the weights of %s must be 1 to 99 and make 100, not %d and %d", errRoute, splitService, a, b)
	}
	return Route{Live: live, SharePercent: b}, nil
}

// colorOfService returns the color whose replicas or failover a service of Traefik
// is.
func colorOfService(service string) (Color, bool) {
	service, _, _ = strings.Cut(service, "@")
	for _, c := range Colors {
		if service == c.failoverService() || service == c.TraefikService() {
			return c, true
		}
	}
	return "", false
}

// withShare returns the text of a color's file, with routers that use a weighted
// service of both colors.
func withShare(text []byte, r Route) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%w: %w", errRoute, err)
	}
	if len(doc.Content) == 0 {
		return nil, fmt.Errorf("%w: it is empty", errRoute)
	}
	http := mappingValue(doc.Content[0], "http")
	routers := mappingValue(http, "routers")
	if routers == nil {
		return nil, fmt.Errorf("%w: it has no routers", errRoute)
	}
	for i := 1; i < len(routers.Content); i += 2 {
		if service := mappingValue(routers.Content[i], "service"); service != nil {
			if _, ours := colorOfService(service.Value); ours {
				service.Value = splitService
			}
		}
	}
	var split yaml.Node
	// The health check removes a color that has no healthy replica.
	source := fmt.Sprintf("weighted:\n  healthCheck: {}\n  services:\n    - {name: %s, weight: %d}\n    - {name: %s, weight: %d}\n",
		r.Live.TraefikService(), 100-r.SharePercent, r.Live.Other().TraefikService(), r.SharePercent)
	if err := yaml.Unmarshal([]byte(source), &split); err != nil {
		return nil, fmt.Errorf("write %s: %w", splitService, err)
	}
	services := mappingValue(http, "services")
	if services == nil || services.Kind != yaml.MappingNode {
		services = &yaml.Node{Kind: yaml.MappingNode}
		http.Content = append(http.Content, scalar("services"), services)
	}
	services.Content = append(services.Content, scalar(splitService), split.Content[0])
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&doc), enc.Close()); err != nil {
		return nil, fmt.Errorf("write %s: %w", splitService, err)
	}
	return out.Bytes(), nil
}

func scalar(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// mappingValue returns the value of a key in a mapping, or nil if there is none.
func mappingValue(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// BalancerStatus is the state that the balancer reports.
type BalancerStatus struct {
	Route Route `json:"route"`
	// ServersUp is how many servers of each color pass its health check.
	ServersUp map[Color]int `json:"up"`
}
