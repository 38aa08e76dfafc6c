// Package browser tests the page and client.js in Chromium, with the built server.
package browser

import (
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// An env is what the tests of the page share, because starting it takes longer
// than most of them. Each opens its own windows, with their own storage, and uses
// its own rooms.
type env struct {
	browser *chromium.Browser
	server  *testkit.Server // of color green, deployment d42
}

func TestInChromium(t *testing.T) {
	e := &env{
		browser: chromium.Start(t),
		server:  testkit.StartServer(t, map[string]string{"COLOR": "green", "DEPLOYMENT": "d42"}),
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"ThePageFollowsAMove", testThePageFollowsAMove},
		{"ClientModules", testClientModules},
		{"ThePageFitsEveryScreen", testThePageFitsEveryScreen},
		{"NothingIsLostWhenTheServerDies", testNothingIsLostWhenTheServerDies},
		{"ThePageShowsWhoIsInTheRoom", testThePageShowsWhoIsInTheRoom},
		{"FilesOfTwoReleasesAreNotMixed", testFilesOfTwoReleasesAreNotMixed},
		{"APageHeldUpByADialogLosesNothing", testAPageHeldUpByADialogLosesNothing},
		{"TheWelcomeHasTheIDWindow", testTheWelcomeHasTheIDWindow},
		{"PublishesAtOnceKeepTheirOrder", testPublishesAtOnceKeepTheirOrder},
		{"ASilentPathIsNoticedWhenTheNetworkComesBack", testASilentPathIsNoticedWhenTheNetworkComesBack},
		{"ThePageKeepsItsSessionOverAReload", testThePageKeepsItsSessionOverAReload},
		{"EnterOfAnInputMethodSendsNothing", testEnterOfAnInputMethodSendsNothing},
		{"AForeignPageLearnsWhyItCannotConnect", testAForeignPageLearnsWhyItCannotConnect},
		{"TwoWindowsChat", testTwoWindowsChat},
		{"HistoryIsLoadedByScrolling", testHistoryIsLoadedByScrolling},
		{"ThePageWorksWithTheKeyboardAlone", testThePageWorksWithTheKeyboardAlone},
		{"TheReadmeExampleWorks", testTheReadmeExampleWorks},
		{"HostileContentIsShownAsText", testHostileContentIsShownAsText},
		{"ThePageChecksWhatItShows", testThePageChecksWhatItShows},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, e)
		})
	}
}
