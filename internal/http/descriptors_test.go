package http

import (
	"testing"

	"switchyard/internal/admission"
)

func TestDescriptorsAreDivided(t *testing.T) {
	for name, tt := range map[string]struct {
		descriptors, wanted int
		want                connectionBudget
	}{
		"no limit":                  {0, 15000, connectionBudget{15000, admission.MaxRejecting, admission.MaxHTTPConns}},
		"enough":                    {65000, 15000, connectionBudget{15000, admission.MaxRejecting, admission.MaxHTTPConns}},
		"the documented 1,000 less": {15870, 15000, connectionBudget{15000, 217, 653}},
		"an eighth for the others":  {1000, 15000, connectionBudget{875, 31, 94}},
		"at most 512 of them":       {10000, 15000, connectionBudget{9488, 128, 384}},
		"few":                       {64, 15000, connectionBudget{56, 2, 6}},
		"nearly none":               {4, 15000, connectionBudget{1, 2, 6}},
	} {
		got := divide(tt.descriptors, tt.wanted, admission.MaxRejecting)
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}
