package session

import (
	"slices"
	"testing"

	"switchyard/internal/testkit"
)

// contract is what nodes do wherever they meet. Each story has two nodes in a
// place of their own.
var contract = []struct {
	name  string
	story func(t *testing.T, h house)
}{
	{"A session comes back on another node", aSessionComesBackOnAnotherNode},
	{"Nobody else's session comes back", nobodyElsesSessionComesBack},
	{"The old owner is told and refused", theOldOwnerIsToldAndRefused},
	{"A session on the same node", aSessionOnTheSameNode},
	{"A touch renews what is there and nothing else", aTouchRenewsWhatIsThereAndNothingElse},
	{"A late save does not undo a later one", aLateSaveDoesNotUndoALaterOne},
	{"A goodbye is for good", aGoodbyeIsForGood},
	{"Sessions expire", sessionsExpire},
	{"A thousand rooms and strange users", aThousandRoomsAndStrangeUsers},
	{"One owner, however many come", oneOwnerHoweverManyCome},
	{"A large batch", aLargeBatch},
	{"Close sends what waits", closeSendsWhatWaits},
	{"Notices keep their order", noticesKeepTheirOrder},
	{"Nodes see each other", nodesSeeEachOther},
	{"Who came back elsewhere is counted", whoCameBackElsewhereIsCounted},
	{"A removed user stays out everywhere", aRemovedUserStaysOutEverywhere},
	{"A bar ends", aBarEnds},
	{"What cannot be barred is said", whatCannotBeBarredIsSaid},
	{"A bar without a notice", aBarWithoutANotice},
	{"More bars than there may be", moreBarsThanThereMayBe},
	{"Who is in a room on all nodes", whoIsInARoomOnAllNodes},
	{"A move is seen by nobody", aMoveIsSeenByNobody},
	{"The newer socket is believed", theNewerSocketIsBelieved},
	{"Many are counted", manyAreCounted},
	{"A rush is gathered", aRushIsGathered},
	{"A killed node's members go", aKilledNodesMembersGo},
	{"A limit holds over nodes", aLimitHoldsOverNodes},
}

// basics is what is also told in a cluster and behind sentinels, where only
// the way to Redis differs.
var basics = []string{
	"A session comes back on another node", "The old owner is told and refused", "A goodbye is for good",
	"One owner, however many come", "A large batch",
	"Who came back elsewhere is counted", "A removed user stays out everywhere",
	"Who is in a room on all nodes", "A move is seen by nobody", "A killed node's members go", "A limit holds over nodes",
}

func TestContract(t *testing.T) {
	for name, h := range map[string]house{
		"memory": memoryHouse,
		"redis":  redisHouse(func(t *testing.T) string { return testkit.Redis(t).URL() }),
	} {
		for _, c := range contract {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				c.story(t, unhurried(h))
			})
		}
	}
}

func TestContractBasics(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) string{
		"sentinel": func(t *testing.T) string { return testkit.StartSentinel(t, "--requirepass", "hunter2").URL() },
		"cluster":  func(t *testing.T) string { return testkit.StartCluster(t).URL() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := at(start(t))
			for _, c := range contract {
				if slices.Contains(basics, c.name) {
					t.Run(c.name, func(t *testing.T) { c.story(t, unhurried(h)) })
				}
			}
		})
	}
}
