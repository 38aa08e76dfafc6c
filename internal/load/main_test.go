package load

import (
	"testing"

	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
