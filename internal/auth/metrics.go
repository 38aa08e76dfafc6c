package auth

import "github.com/prometheus/client_golang/prometheus"

// How a fetch of the JWKS ended: the values of the label result of
// auth_jwks_refreshes_total.
const (
	refreshOK     = "ok"
	refreshFailed = "failed" // the keys that were there stay in use
	refreshEmpty  = "empty"  // a set that holds no key for tokens: nothing is left to check with
)

// metrics of one verifier. They are made with a registry that is passed in, so
// that several nodes can live in one process.
type metrics struct {
	tokens    map[string]prometheus.Counter // by result, read only
	up        prometheus.Gauge
	refreshes map[string]prometheus.Counter // by result, read only
}

// newMetrics leaves those about the JWKS unregistered where there is none: an
// auth_jwks_up of 0 always means trouble.
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

// recordRefresh notes how a fetch of the JWKS ended.
func (m *metrics) recordRefresh(result string) {
	m.refreshes[result].Inc()
	if result == refreshOK {
		m.up.Set(1)
	} else {
		m.up.Set(0)
	}
}
