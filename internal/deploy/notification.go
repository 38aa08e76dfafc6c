package deploy

import (
	"time"

	"switchyard/internal/stack"
)

// A Notification is a message about a deploy for people and other programs.
type Notification struct {
	At time.Time `json:"at"`
	// Kind is start, switch, deployed or rollback.
	Kind   string      `json:"kind"`
	Deploy string      `json:"deploy"`
	Image  string      `json:"image"`
	Live   stack.Color `json:"live"`
	Text   string      `json:"text"`
}
