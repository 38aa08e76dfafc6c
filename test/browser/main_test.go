// Package browser tests the page and client.js in Chromium, Firefox and WebKitGTK, with
// the built server.
package browser

import (
	"flag"
	"testing"

	"switchyard/internal/testkit"
	"switchyard/internal/testkit/chromium"
	"switchyard/internal/testkit/webdriver"
)

// all makes Firefox and WebKitGTK run every story that they can, and all browsers the
// long ones: make browsers.
var all = flag.Bool("browsers.all", false, "run all stories in all browsers, also the long ones")

func TestMain(m *testing.M) { testkit.Main(m) }

// A window is a tab of whichever browser.
type window interface {
	// Evaluate decodes the value of a JavaScript expression; a promise is awaited.
	Evaluate(expression string, value any)
	// Until waits until an expression is true.
	Until(expression string)
	// Type types keys into the element that has the focus.
	Type(keys string)
}

// eval returns the value of a JavaScript expression.
func eval[T any](w window, expression string) T {
	var value T
	w.Evaluate(expression, &value)
	return value
}

// An env is what the tests of the page share, because starting it takes longer
// than most of them. Each opens its own windows, and uses its own rooms.
type env struct {
	open    func(testing.TB, string) window
	browser *chromium.Browser // nil in other browsers
	server  *testkit.Server   // of color green, deployment d42
}

type story struct {
	name string
	run  func(*testing.T, *env)
}

// shared are the stories that every browser runs.
var shared = []story{
	{"ClientModules", testClientModules},
	{"TheServerIsAway", testTheServerIsAway},
	{"NothingIsLostWhenTheServerDies", testNothingIsLostWhenTheServerDies},
	{"TheWelcomeHasTheIDWindow", testTheWelcomeHasTheIDWindow},
	{"PublishesAtOnceKeepTheirOrder", testPublishesAtOnceKeepTheirOrder},
	{"ASilentPathIsNoticedWhenTheNetworkComesBack", testASilentPathIsNoticedWhenTheNetworkComesBack},
	{"EnterOfAnInputMethodSendsNothing", testEnterOfAnInputMethodSendsNothing},
	{"AForeignPageLearnsWhyItCannotConnect", testAForeignPageLearnsWhyItCannotConnect},
	{"TwoWindowsChat", testTwoWindowsChat},
	{"HistoryIsLoadedByScrolling", testHistoryIsLoadedByScrolling},
	{"HostileContentIsShownAsText", testHostileContentIsShownAsText},
	{"ThePageChecksWhatItShows", testThePageChecksWhatItShows},
}

func startServer(t *testing.T) *testkit.Server {
	return testkit.StartServer(t, map[string]string{"COLOR": "green", "DEPLOYMENT": "d42"})
}

func runStories(t *testing.T, e *env, stories []story) {
	for _, story := range stories {
		t.Run(story.name, func(t *testing.T) {
			t.Parallel()
			story.run(t, e)
		})
	}
}

func TestInChromium(t *testing.T) {
	t.Parallel()
	browser := chromium.Start(t)
	e := &env{
		open:    func(tb testing.TB, url string) window { return browser.Open(tb, url) },
		browser: browser,
		server:  startServer(t),
	}
	stories := append([]story{
		{"ThePageFollowsAMove", testThePageFollowsAMove},
		{"ThePageFitsEveryScreen", testThePageFitsEveryScreen},
		{"ANameThatNobodyVouchesForIsMarked", testANameThatNobodyVouchesForIsMarked},
		{"ThePageShowsWhoIsInTheRoom", testThePageShowsWhoIsInTheRoom},
		{"ThePageWorksWithTheKeyboardAlone", testThePageWorksWithTheKeyboardAlone},
		{"TheReadmeExampleWorks", testTheReadmeExampleWorks},
		{"FilesOfTwoReleasesAreNotMixed", testFilesOfTwoReleasesAreNotMixed},
		{"APageHeldUpByADialogLosesNothing", testAPageHeldUpByADialogLosesNothing},
		// WebKitGTK opens no window without a user's click.
		{"ThePageKeepsItsSessionOverAReload", testThePageKeepsItsSessionOverAReload},
		{"AFrozenPageMissesNothing", testAFrozenPageMissesNothing},
		{"ADiscardedTabContinuesItsSession", testADiscardedTabContinuesItsSession},
		{"APageOutOfTheBackForwardCacheMissesNothing", testAPageOutOfTheBackForwardCacheMissesNothing},
		{"ACopyOfATabThatIsElsewhereGetsItsOwnSession", testACopyOfATabThatIsElsewhereGetsItsOwnSession},
		{"ABrowserThatIsOfflineLosesNothing", testABrowserThatIsOfflineLosesNothing},
		{"ForeignStorageBreaksNothing", testForeignStorageBreaksNothing},
		{"ACautiousBrowserLosesNothing", testACautiousBrowserLosesNothing},
	}, shared...)
	if *all { // a Chromium of its own
		stories = append(stories, story{"ABrowserThatSleepsMissesNothing", testABrowserThatSleepsMissesNothing})
	}
	runStories(t, e, stories)
}

// TestInFirefox runs one story in make test, about what only Firefox does: it holds
// sockets back after others have failed.
func TestInFirefox(t *testing.T) { runWebDriver(t, webdriver.StartFirefox, "TheServerIsAway") }

// TestInWebKit runs one story in make test.
func TestInWebKit(t *testing.T) {
	runWebDriver(t, webdriver.StartWebKit, "NothingIsLostWhenTheServerDies")
}

func runWebDriver(t *testing.T, start func(testing.TB) *webdriver.Browser, short string) {
	t.Parallel()
	browser := start(t)
	e := &env{
		open:   func(tb testing.TB, url string) window { return browser.Open(tb, url) },
		server: startServer(t),
	}
	for _, story := range shared {
		if *all || story.name == short {
			t.Run(story.name, func(t *testing.T) { story.run(t, e) })
		}
	}
}
