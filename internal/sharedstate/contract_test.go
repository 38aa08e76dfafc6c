package sharedstate

import (
	"slices"
	"testing"

	"switchyard/internal/testkit"
)

// contract is what nodes do wherever they meet. Each story has two nodes in a
// place of their own.
var contract = []struct {
	name string
	test func(t *testing.T, h backendFactory)
}{
	{"A session comes back on another node", aSessionResumesOnAnotherNode},
	{"Nobody else's session comes back", onlyItsOwnerResumesASession},
	{"The old owner is told and refused", theOldOwnerIsNotifiedAndRefused},
	{"A session on the same node", aSessionResumesOnTheSameNode},
	{"A touch renews what is there and nothing else", aTouchRenewsOnlyTheSavedState},
	{"A late save does not undo a later one", aDelayedSaveDoesNotOverwriteANewerOne},
	{"A goodbye is for good", anEndedSessionStaysEnded},
	{"Sessions expire", sessionsExpire},
	{"A thousand rooms and strange users", manyRoomsAndUnusualUserNames},
	{"One owner, however many come", concurrentResumesHaveOneOwner},
	{"A large batch", aLargeBatch},
	{"Close sends what waits", closeSendsWhatIsQueued},
	{"Notices keep their order", eventsKeepTheirOrder},
	{"Nodes see each other", nodesSeeEachOther},
	{"Who came back elsewhere is counted", returnedSessionsAreCounted},
	{"A removed user stays out everywhere", aBannedUserIsRejectedOnEveryNode},
	{"A bar ends", aBanExpires},
	{"What cannot be barred is said", invalidBansAreRejected},
	{"A bar without a notice", aBanSpreadsWithoutItsEvent},
	{"More bars than there may be", tooManyBansAreRefused},
	{"Who is in a room on all nodes", presenceSpansAllNodes},
	{"A move is seen by nobody", aMoveDoesNotChangePresence},
	{"The newer socket is believed", theNewerGenerationWins},
	{"Many are counted", largeRoomsAreCounted},
	{"A rush is gathered", rapidChangesAreCoalesced},
	{"A killed node's members go", aKilledNodesSessionsLeave},
	{"A limit holds over nodes", aLimitHoldsAcrossNodes},
}

// clusterContract is what is also told in a cluster and behind sentinels, where only
// the way to Redis differs.
var clusterContract = []string{
	"A session comes back on another node", "The old owner is told and refused", "A goodbye is for good",
	"One owner, however many come", "A large batch",
	"Who came back elsewhere is counted", "A removed user stays out everywhere",
	"Who is in a room on all nodes", "A move is seen by nobody", "A killed node's members go", "A limit holds over nodes",
}

func TestContract(t *testing.T) {
	for name, h := range map[string]backendFactory{
		"memory": memoryFactory,
		"redis":  redisFactory(func(t *testing.T) string { return testkit.Redis(t).URL() }),
	} {
		for _, c := range contract {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				c.test(t, withLongTimeout(h))
			})
		}
	}
}

func TestContractBasics(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) string{
		"sentinel": func(t *testing.T) string { return testkit.StartRedisSentinel(t, "--requirepass", "hunter2").URL() },
		"cluster":  func(t *testing.T) string { return testkit.StartRedisCluster(t).URL() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := redisAt(start(t))
			for _, c := range contract {
				if slices.Contains(clusterContract, c.name) {
					t.Run(c.name, func(t *testing.T) { c.test(t, withLongTimeout(h)) })
				}
			}
		})
	}
}
