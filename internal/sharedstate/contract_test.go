package sharedstate

import (
	"slices"
	"testing"
	"testing/synctest"

	"switchyard/internal/testkit"
)

// contract are the stories that hold on every backend. Each starts its own nodes.
var contract = []struct {
	name string
	test func(t *testing.T, factory backendFactory)
}{
	{"A session resumes on another node", aSessionResumesOnAnotherNode},
	{"Only its owner resumes a session", onlyItsOwnerResumesASession},
	{"The old owner is notified and refused", theOldOwnerIsNotifiedAndRefused},
	{"A session resumes on the same node", aSessionResumesOnTheSameNode},
	{"A touch renews only the saved state", aTouchRenewsOnlyTheSavedState},
	{"A delayed save does not overwrite a newer one", aDelayedSaveDoesNotOverwriteANewerOne},
	{"An ended session stays ended", anEndedSessionStaysEnded},
	{"Sessions expire", sessionsExpire},
	{"Many rooms and unusual user names", manyRoomsAndUnusualUserNames},
	{"Concurrent resumes have one owner", concurrentResumesHaveOneOwner},
	{"A large batch", aLargeBatch},
	{"Close sends what is queued", closeSendsWhatIsQueued},
	{"Events keep their order", eventsKeepTheirOrder},
	{"Nodes see each other", nodesSeeEachOther},
	{"Returned sessions are counted", returnedSessionsAreCounted},
	{"A banned user is rejected on every node", aBannedUserIsRejectedOnEveryNode},
	{"A ban expires", aBanExpires},
	{"Invalid bans are rejected", invalidBansAreRejected},
	{"A ban spreads without its event", aBanSpreadsWithoutItsEvent},
	{"Too many bans are refused", tooManyBansAreRefused},
	{"Expired bans make room", expiredBansMakeRoom},
	{"Presence spans all nodes", presenceSpansAllNodes},
	{"A move does not change presence", aMoveDoesNotChangePresence},
	{"The newer generation wins", theNewerGenerationWins},
	{"Large rooms are counted", largeRoomsAreCounted},
	{"Rapid changes are coalesced", rapidChangesAreCoalesced},
	{"A killed node's sessions leave", aKilledNodesSessionsLeave},
	{"A limit holds across nodes", aLimitHoldsAcrossNodes},
}

// clusterContract are the stories that also run on a cluster and behind
// sentinels, where only the way to Redis differs.
var clusterContract = []string{
	"A session resumes on another node", "The old owner is notified and refused", "An ended session stays ended",
	"Concurrent resumes have one owner", "A large batch",
	"Returned sessions are counted", "A banned user is rejected on every node",
	"Presence spans all nodes", "A move does not change presence", "A killed node's sessions leave",
	"A limit holds across nodes",
}

// The memory backend runs the contract in virtual time.
func TestContractInMemory(t *testing.T) {
	t.Parallel()
	for _, story := range contract {
		t.Run(story.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { story.test(t, memoryFactory) })
		})
	}
}

func TestContractOnRedis(t *testing.T) {
	t.Parallel()
	factory := redisFactory(func(t *testing.T) string { return testkit.Redis(t).URL() })
	for _, story := range contract {
		t.Run(story.name, func(t *testing.T) {
			t.Parallel()
			story.test(t, withLongTimeout(factory))
		})
	}
}

func TestContractOnSentinelAndCluster(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) string{
		"sentinel": func(t *testing.T) string { return testkit.StartRedisSentinel(t, "--requirepass", "hunter2").URL() },
		"cluster":  func(t *testing.T) string { return testkit.StartRedisCluster(t).URL() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			factory := redisAt(start(t))
			for _, story := range contract {
				if slices.Contains(clusterContract, story.name) {
					t.Run(story.name, func(t *testing.T) {
						t.Parallel()
						story.test(t, withLongTimeout(factory))
					})
				}
			}
		})
	}
}
