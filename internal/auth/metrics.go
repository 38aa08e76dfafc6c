package auth

import "github.com/prometheus/client_golang/prometheus"

// The results of a fetch of the JWKS: the values of the label result of
// auth_jwks_refreshes_total.
const (
	refreshOK     = "ok"
	refreshFailed = "failed" // the keys before it stay in use
	refreshEmpty  = "empty"  // the set has no key for tokens, so that no token can be checked
)

// metrics are those of one verifier. The registry is an argument, so that several
// nodes can run in one process.
type metrics struct {
	tokens    map[string]prometheus.Counter // by result, read only
	up        prometheus.Gauge
	refreshes map[string]prometheus.Counter // by result, read only
}

// newMetrics does not register the metrics of the JWKS if there is none, so that
// auth_jwks_up is 0 only in case of trouble.
func newMetrics(reg prometheus.Registerer, jwks bool) *metrics {
	m := &metrics{
		tokens:    make(map[string]prometheus.Counter),
		refreshes: make(map[string]prometheus.Counter),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "auth_jwks_up",
			Help: "1 while the last fetch of the JWKS brought keys, else 0.",
		}),
	}
	tokens := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "auth_tokens_total",
		Help: "Tokens that were checked, by result.",
	}, []string{"result"})
	m.tokens[resultOK] = tokens.WithLabelValues(resultOK)
	for _, c := range causes {
		m.tokens[c.name] = tokens.WithLabelValues(c.name)
	}
	refreshes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "auth_jwks_refreshes_total",
		Help: "Fetches of the JWKS, by result.",
	}, []string{"result"})
	for _, result := range []string{refreshOK, refreshFailed, refreshEmpty} {
		m.refreshes[result] = refreshes.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(tokens)
		if jwks {
			reg.MustRegister(m.up, refreshes)
		}
	}
	return m
}

// recordRefresh counts the result of a fetch of the JWKS.
func (m *metrics) recordRefresh(result string) {
	m.refreshes[result].Inc()
	if result == refreshOK {
		m.up.Set(1)
	} else {
		m.up.Set(0)
	}
}
