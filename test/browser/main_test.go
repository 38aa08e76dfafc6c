// Package browser tests the page and client.js in real Chromium against the
// real server.
package browser

import (
	"testing"

	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
