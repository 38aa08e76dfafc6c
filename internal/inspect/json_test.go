package inspect

import (
	"encoding/json"
	"testing"
	"time"
)

// Programs read what the commands print with --json: its keys do not change.
func TestTheKeysOfTheJSONOutput(t *testing.T) {
	at := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	for want, v := range map[string]any{
		`{"at":"2026-11-26T00:00:00Z","sections":[{"title":"","lines":[{"mark":"BAD","what":"","says":""}]}]}`:                                                   DailyResult{At: at, Sections: []Section{{Results: []CheckResult{{Status: StatusFail}}}}},
		`{"since":"2026-11-26T00:00:00Z","kinds":[{"level":"","says":"","count":0,"example":"e"}],"other_lines":0,"codes":[{"name":"","count":0}],"untold":"x"}`: Errors{Since: at, Kinds: []ErrorKind{{Example: "e"}}, Codes: []Count{{}}, MetricsError: "x"},
		`{"since":"2026-11-26T00:00:00Z","open":0,"ended":0,"codes":null,"reasons":null,"handshakes":null,"lives_p10_p50_p90":[0,0,0],"addresses":[` +
			`{"address":"","ended":0,"short":0,"slow":0,"worst_reason":""}],"address_count":0,"untold":"x"}`: Connections{Since: at, Addresses: []AddressStats{{}}, MetricsError: "x"},
		`{"at":"2026-11-26T00:00:00Z","nodes":null,"rooms":[{"room":"","seq":0,"members":0,"rate":0,"held":0,"behind":0}],"live_rooms":0,"untold":"x","mute":"y"}`:              TopSnapshot{At: at, Rooms: []Room{{}}, MetricsError: "x", RoomsError: "y"},
		`{"at":"2026-11-26T00:00:00Z","nodes":null,"heaps":[{"node":"","bytes_in_use":0,"sites":[{"function":"","bytes":0,"objects":0}],"file":"f","error":"e"}],"untold":"x"}`: Memory{At: at, Heaps: []Heap{{Sites: []AllocationSite{{}}, File: "f", Error: "e"}}, MetricsError: "x"},
		`{"service":"","statistics_since":"","uncounted":"x","statements":[{"calls":"","total_ms":"","mean_ms":"","max_ms":"","share_percent":"","query":"","blocks_read":""}],` +
			`"running":[{"PID":"","Age":"","State":"","Wait":"","Blockers":"","Application":"","Query":""}],"tables":[{"Name":"","Rows":"","Dead":"","Size":"","Scans":""}]}`: Queries{
			StatisticsMissing: "x", Statements: []Statement{{}}, Running: []RunningStatement{{}}, Tables: []TableStats{{}},
		},
	} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("%T: %v\ngot  %s\nwant %s", v, err, got, want)
		}
	}
}
