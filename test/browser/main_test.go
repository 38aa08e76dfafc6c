// Package browser tests the page and client.js in Chromium, with the built server.
package browser

import (
	"testing"

	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
