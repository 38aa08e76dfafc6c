// Package report has the result of a load run, which the driver prints as one line of
// JSON and the runner reads.
package report

// A Run is the result of one load run. Rates are per second of wall time; those of a core
// are per second of the server's processor time, user and system. The JSON keys are those
// of kept results.
type Run struct {
	Server   string `json:"server,omitempty"`
	Test     string `json:"test,omitempty"`
	Scenario string `json:"scenario"`
	Protocol string `json:"protocol"`

	Connections    int     `json:"connections"`
	Failed         int     `json:"failed"` // never got ready
	ClosedByServer int     `json:"cut"`    // ended by the server while in use
	Seconds        float64 `json:"seconds"`

	Published  int64   `json:"published,omitempty"`
	Delivered  int64   `json:"delivered,omitempty"`
	Answered   int64   `json:"answered,omitempty"` // acks, or other answers
	Lost       int64   `json:"lost"`               // deliveries that never came
	Duplicated int64   `json:"doubled"`
	OutOfOrder int64   `json:"disordered"`
	Connects   float64 `json:"connects_per_s,omitempty"`
	Rate       float64 `json:"per_s,omitempty"`      // deliveries, else answers
	PerCore    float64 `json:"per_core_s,omitempty"` // the same by the server's CPU time

	ServerCPU  float64 `json:"server_cpu_s,omitempty"`
	BackingCPU float64 `json:"beside_cpu_s,omitempty"` // the database's and the broker's
	DriverBusy float64 `json:"driver_busy"`            // of one core, 0 to 1
	Steal      float64 `json:"steal"`                  // of the machine, 0 to 1: used by the hypervisor
	OtherLoad  float64 `json:"foreign"`                // of the machine, 0 to 1: used by other programs

	Delivery *Latency `json:"delivery_ms,omitempty"`
	Ack      *Latency `json:"ack_ms,omitempty"`
	Ready    *Latency `json:"ready_ms,omitempty"` // from connect to joined
	Late     *Latency `json:"late_ms,omitempty"`  // how late the driver published, by its own schedule
	Healthz  *Latency `json:"healthz_ms,omitempty"`

	RSS int64 `json:"rss,omitempty"` // bytes that the connections added to the server
	// Of a server whose connections have all ended. RSS is then that of the whole process.
	Heap        int64 `json:"heap,omitempty"`
	Goroutines  int64 `json:"goroutines,omitempty"`
	Descriptors int64 `json:"descriptors,omitempty"`

	LastArrival int64 `json:"last_arrival,omitempty"` // Unix ns
	LastPublish int64 `json:"last_publish,omitempty"`

	Errors map[string]int `json:"errors,omitempty"`
}

// A Latency is a distribution in milliseconds.
type Latency struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
	N    int64   `json:"n"`
}
