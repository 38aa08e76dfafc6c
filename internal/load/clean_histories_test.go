package load

import "testing"

// cleanHistories are histories of a service that keeps its promises.
var cleanHistories = map[string]string{
	"all in order": threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s gets c e:3`,
	"delivered before the ack": `s joins e:0
			publish a
			s gets a e:1
			ack a e:1`,
	"joined late": threeMessages + `s joins e:2
			s gets c e:3`,
	"left early": threeMessages + `s joins e:0
			s gets a e:1
			s leaves`,
	"delivered while it leaves": threeMessages + `s joins e:0
			s gets a e:1
			s leaves
			s gets b e:2`,
	"left, and joined again": threeMessages + `s joins e:0
			s gets a e:1
			s leaves
			s joins e:2
			s gets c e:3`,
	"at its required end": threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s ends e:2`,
	"trimmed": threeMessages + `s joins e:0
			s gap e:1-2 trimmed
			s gets c e:3`,
	"trimmed twice, also before the position": threeMessages + `s joins e:0
			s gets a e:1
			s gap e:1-2 trimmed
			s returns e:3
			s gap e:1-1 trimmed
			s gets c e:3`,
	"a new epoch invalidates what was not delivered": threeMessages + `s joins e:0
			s gets a e:1
			publish d
			s gap f:1-1 epoch
			s gets d f:2
			ack d f:2`,
	"an epoch without a message": threeMessages + `s joins e:0
			s gets a e:1
			s gap f:1-0 epoch
			publish d
			ack d f:1
			s gets d f:1`,
	"two new epochs": threeMessages + `s joins e:0
			s gets a e:1
			t joins e:0
			t gets a e:1
			t gap f:1-1 epoch
			publish d
			ack d f:2
			t gets d f:2
			t gap g:1-1 epoch
			s gap g:1-1 epoch`,
	"all epochs are equal before the first message": `s joins e:0
			t joins e:0
			u joins e:0
			s returns f:1
			u returns f:1
			publish a
			ack a f:1
			s gets a f:1
			t gets a f:1
			u gap f:1-1 trimmed`,
	"rejoined in a new epoch without a message of the old one": `s joins e:0
			publish a
			ack a e:1
			s returns f:0
			t joins f:0
			publish b
			ack b f:1
			t gets b f:1
			s gets b f:1
			u joins e:0
			u returns f:1
			u gap f:1-1 trimmed`,
	"rejoined an empty room": threeMessages + `s joins e:0
			s returns f:0
			q joins f:0 @q
			publish a @q
			ack a f:1 @q
			q gets a f:1 @q`,
	"a late ack of the old epoch": threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s gets c e:3
			publish d
			publish x
			s gap f:1-3 epoch
			s gets d f:4
			ack d f:4
			ack x e:4`,
	"a late ack of an epoch without members": `publish x
			s joins f:0
			publish d
			ack x e:1
			ack d f:1
			s gets d f:1`,
	"stored again in a new epoch": threeMessages + `s joins e:0
			s gets a e:1
			s gap f:1-0 epoch
			s gets a f:1`,
	"a position above the head": threeMessages + `s joins e:9
			s gap e:1-2 epoch
			s gets c e:3`,
	"confirmed": `publish a
			s joins e:0
			s gets a e:1
			ack a e:1
			confirm a e:1
			confirm x e:7`,
	"resent": `publish a
			publish a
			ack a e:1
			duplicate a e:1
			s joins e:0
			s gets a e:1`,
	"unknown, and not stored": `publish a
			unknown a
			publish b
			ack b e:1
			s joins e:0
			s gets b e:1`,
	"unknown, and stored": `publish a
			unknown a
			publish b
			ack b e:2
			s joins e:0
			s gets a e:1
			s gets b e:2`,
	"unknown, and acked the second time": `publish a
			unknown a
			publish a
			duplicate a e:1
			s joins e:0
			s gets a e:1`,
	"in conflict": `publish a
			ack a e:1
			publish a other
			refuse a conflict other
			s joins e:0
			s gets a e:1`,
	"refused once, stored later": `publish a
			refuse a rate_limited
			publish a
			ack a e:1
			s joins e:0
			s gets a e:1`,
	"the same ids in another room": threeMessages + `s joins e:0
			s gets a e:1
			s gets b e:2
			s gets c e:3
			publish a @q
			ack a e:1 @q
			s joins e:0 @q
			s gets a e:1 @q`,
}

// Histories of a service that keeps its promises are clean.
func TestPromisedBehaviorIsNoFault(t *testing.T) {
	for name, script := range cleanHistories {
		t.Run(name, func(t *testing.T) {
			if report := Check(scriptedHistory(t, script)); report.Verdict != Clean {
				t.Error(report)
			}
		})
	}
}
