package deploy

import "time"

// A Notification is a message about a deploy for people and other programs.
type Notification struct {
	At time.Time `json:"at"`
	// Kind is start, switch, deployed, rollback or stuck.
	Kind   string `json:"kind"`
	Deploy string `json:"deploy"`
	Image  string `json:"image"`
	Live   Color  `json:"live"`
	Text   string `json:"text"`
}
