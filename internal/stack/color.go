package stack

import "fmt"

// A Color is one of the two sets of nodes that take turns.
type Color string

// The colors.
const (
	Blue  Color = "blue"
	Green Color = "green"
)

// Colors are both, in the order in which they are shown.
var Colors = []Color{Blue, Green}

// ParseColor reads a color as people write it.
func ParseColor(s string) (Color, error) {
	switch c := Color(s); c {
	case Blue, Green:
		return c, nil
	}
	return "", fmt.Errorf("a color is blue or green, not %q", s)
}

// Other returns the other color.
func (c Color) Other() Color {
	if c == Blue {
		return Green
	}
	return Blue
}

// ComposeService is what Compose calls the color's service.
func (c Color) ComposeService() string { return "app_" + string(c) }

// TraefikService is what Traefik calls the color's replicas.
func (c Color) TraefikService() string { return "app-" + string(c) }

// failoverService is the Traefik service that the users' routers name: it leads
// to the color's replicas, and to the other color's while this one has none
// (services.yml).
func (c Color) failoverService() string { return "live-" + string(c) }
