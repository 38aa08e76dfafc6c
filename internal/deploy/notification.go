package deploy

import "time"

// A Notification is told to people and programs that want to know.
type Notification struct {
	At time.Time `json:"at"`
	// Kind is start, switch, deployed, rollback or stuck.
	Kind   string `json:"kind"`
	Deploy string `json:"deploy"`
	Image  string `json:"image"`
	Live   Color  `json:"live"`
	Text   string `json:"text"`
}
